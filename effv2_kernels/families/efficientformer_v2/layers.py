"""The trainable parts of the network: convolution + BatchNorm, layer scale, and the layers of each block.

The attribute names give the state-dict keys, which are those of timm's EfficientFormerV2.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from effv2_kernels.reference.attention import upsample_to
from effv2_kernels.reference.attention_bias import bias_for
from effv2_kernels.reference.layers import by_head, weighted_values


class ConvNorm(nn.Module):
    """y = BatchNorm(conv(x)) with a biased convolution and padding ``kernel // 2``.

    x: (N, in_channels, H, W); y: (N, out_channels, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int = 1, *, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn(self.conv(x))
        return y


class LayerScale(nn.Module):
    """y = gamma * x, one factor for each channel of x: (N, channels, H, W)."""

    def __init__(self, channels: int, init: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((channels,), float(init)))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma.view(-1, 1, 1)


def layer_scale(channels: int, init: float | None) -> nn.Module:
    """A LayerScale that starts at ``init``, or no scale where that is None."""
    return nn.Identity() if init is None else LayerScale(channels, init)


class DropPath(nn.Module):
    """Stochastic depth (Huang et al., arXiv 1603.09382): each image loses the branch at ``rate``.

    x: (N, channels, H, W). What is kept is divided by 1 - rate, so that the mean stays; in eval mode y = x.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.drop_prob = rate  # the name by which readers know it, timm's

    def forward(self, x: Tensor) -> Tensor:
        return dropped(x, self.drop_prob) if self.training else x

    def extra_repr(self) -> str:
        return f"{self.drop_prob:.3f}"


def dropped(x: Tensor, rate: float) -> Tensor:
    """x: (N, channels, H, W), of which each image is 0 at this rate, and else divided by 1 - rate."""
    kept = 1 - rate
    return x * (x.new_empty(len(x), 1, 1, 1).bernoulli_(kept) / kept)


def drop_path(rate: float) -> nn.Module:
    """A DropPath, or nothing where the rate is 0."""
    return DropPath(rate) if rate else nn.Identity()


class StemLayer(nn.Module):
    """y = GELU(BN(conv2(GELU(BN(conv1(x)))))).

    x: (N, in_channels, H, W); y: (N, out_channels, ceil(ceil(H / 2) / 2), ...); half the channels between.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(in_channels, out_channels // 2, 3, stride=2)
        self.conv2 = ConvNorm(out_channels // 2, out_channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.conv2(F.gelu(self.conv1(x))))


class FFNLayer(nn.Module):
    """y = fc2(GELU(mid(GELU(fc1(x))))), without the residual. x, y: (N, channels, H, W)."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = ConvNorm(channels, hidden)
        self.mid = ConvNorm(hidden, hidden, 3, groups=hidden)
        self.fc2 = ConvNorm(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc2(F.gelu(self.mid(F.gelu(self.fc1(x)))))
        return y


class AttentionLayer(nn.Module):
    """The token mixer of a block, without the residual. x, y: (N, channels, H, W).

    ``resolution``: rows and columns of x that the bias is made for. A map of another size raises
    ResolutionError unless ``resize_bias``.
    """

    def __init__(
        self,
        channels: int,
        resolution: tuple[int, int],
        *,
        stride: int = 1,
        resize_bias: bool = False,
        heads: int = 8,
        key_dim: int = 32,
        value_dim: int = 128,
    ) -> None:
        super().__init__()
        self.heads, self.key_dim, self.value_dim = heads, key_dim, value_dim
        self.stride = stride
        self.resize_bias = resize_bias
        # tokens of the grid that the bias is made for
        self.grid = (-(-resolution[0] // stride), -(-resolution[1] // stride))
        self.stride_conv = ConvNorm(channels, channels, 3, stride=2, groups=channels) if stride == 2 else None
        self.q = ConvNorm(channels, heads * key_dim)
        self.k = ConvNorm(channels, heads * key_dim)
        self.v = ConvNorm(channels, heads * value_dim)
        self.v_local = ConvNorm(heads * value_dim, heads * value_dim, 3, groups=heads * value_dim)
        self.talking_head1 = nn.Conv2d(heads, heads, 1)
        self.talking_head2 = nn.Conv2d(heads, heads, 1)
        self.proj = ConvNorm(heads * value_dim, channels)
        self.attention_biases = nn.Parameter(torch.zeros(heads, self.grid[0] * self.grid[1]))

    def bias_table(self) -> Tensor:
        """(heads, rows, cols), by distance."""
        return self.attention_biases.view(-1, *self.grid)

    def bias(self, grid: tuple[int, int]) -> Tensor:
        """(heads, queries, keys): what is added to the logits of a map of ``grid`` (rows, cols) tokens."""
        return bias_for(self.bias_table(), grid, resize=self.resize_bias)

    def forward(self, x: Tensor) -> Tensor:
        z = x if self.stride_conv is None else self.stride_conv(x)
        grid = (z.shape[2], z.shape[3])
        v_map = self.v(z)
        q, k = by_head(self.q(z), self.heads), by_head(self.k(z), self.heads)
        logits = q.transpose(2, 3) @ k * self.key_dim**-0.5
        logits = logits + self.bias(grid)
        p = self.talking_head2(self.talking_head1(logits).softmax(-1))
        u = weighted_values(p, v_map, grid) + self.v_local(v_map)
        if self.stride_conv is not None:
            u = upsample_to(u, (x.shape[2], x.shape[3]))
        y: Tensor = self.proj(F.gelu(u))
        return y


class ConvDownsampleLayer(nn.Module):
    """y = BN(conv(x)). x: (N, in_channels, H, W); y: (N, out_channels, ceil(H / 2), ceil(W / 2))."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = ConvNorm(in_channels, out_channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y


class LocalGlobalQuery(nn.Module):
    """q = proj(local(x) + x[:, :, ::2, ::2]). x: (N, in_channels, H, W)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.local = nn.Conv2d(in_channels, in_channels, 3, 2, 1, groups=in_channels)
        self.proj = ConvNorm(in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        q: Tensor = self.proj(self.local(x) + x[:, :, ::2, ::2])
        return q


class DownsampleAttentionLayer(nn.Module):
    """The attention path. x: (N, in_channels, H, W); y: (N, out_channels, ceil(H / 2), ceil(W / 2)).

    ``resolution``: rows and columns of x that the bias is made for. A map of another size raises
    ResolutionError unless ``resize_bias``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        resolution: tuple[int, int],
        *,
        resize_bias: bool = False,
        heads: int = 8,
        key_dim: int = 16,
        value_dim: int = 64,
    ) -> None:
        super().__init__()
        self.heads, self.key_dim, self.value_dim = heads, key_dim, value_dim
        self.resize_bias = resize_bias
        self.grid = resolution
        self.q = LocalGlobalQuery(in_channels, heads * key_dim)
        self.k = ConvNorm(in_channels, heads * key_dim)
        self.v = ConvNorm(in_channels, heads * value_dim)
        self.v_local = ConvNorm(heads * value_dim, heads * value_dim, 3, stride=2, groups=heads * value_dim)
        self.proj = ConvNorm(heads * value_dim, out_channels)
        self.attention_biases = nn.Parameter(torch.zeros(heads, resolution[0] * resolution[1]))

    def bias_table(self) -> Tensor:
        """(heads, rows, cols), by distance."""
        return self.attention_biases.view(-1, *self.grid)

    def bias(self, grid: tuple[int, int]) -> Tensor:
        """(heads, queries, keys): what is added to the logits of a map of ``grid`` (rows, cols) keys."""
        return bias_for(self.bias_table(), grid, query_stride=2, resize=self.resize_bias)

    def forward(self, x: Tensor) -> Tensor:
        q_map, v_map = self.q(x), self.v(x)
        q, k = by_head(q_map, self.heads), by_head(self.k(x), self.heads)
        logits = q.transpose(2, 3) @ k * self.key_dim**-0.5
        p = (logits + self.bias((x.shape[2], x.shape[3]))).softmax(-1)
        u = weighted_values(p, v_map, (q_map.shape[2], q_map.shape[3])) + self.v_local(v_map)
        y: Tensor = self.proj(F.gelu(u))
        return y


class AttentionDownsampleLayer(nn.Module):
    """y = attn(x) + conv(x). x: (N, in_channels, H, W); y: (N, out_channels, ceil(H / 2), ceil(W / 2))."""

    def __init__(
        self, in_channels: int, out_channels: int, resolution: tuple[int, int], *, resize_bias: bool = False
    ) -> None:
        super().__init__()
        self.conv = ConvNorm(in_channels, out_channels, 3, stride=2)
        self.attn = DownsampleAttentionLayer(in_channels, out_channels, resolution, resize_bias=resize_bias)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.attn(x) + self.conv(x)
        return y
