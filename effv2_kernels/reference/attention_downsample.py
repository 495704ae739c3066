"""The step to the last stage: strided attention beside a convolution (paper section 3.2, dual path)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from effv2_kernels import blocks
from effv2_kernels.reference.activation import activate
from effv2_kernels.reference.attention_bias import bias_for
from effv2_kernels.reference.layers import ConvNorm, by_head, conv, weighted_values


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


def attention_downsample(x: Tensor, block: blocks.AttentionDownsample) -> Tensor:
    """The equation of ``blocks.AttentionDownsample``. x: (N, channels, H, W), any floating dtype.

    Raises ResolutionError where the bias does not fit the map and is not to be resized.
    """
    q_map = conv(conv(x, block.dw, 2), block.q)
    keys, values = block.heads * block.key_dim, block.heads * block.value_dim
    k_map, v_map = torch.split(conv(x, block.kv), [keys, values], dim=1)
    q, k = by_head(q_map, block.heads), by_head(k_map, block.heads)
    grid = (x.shape[2], x.shape[3])
    bias = bias_for(block.bias.to(x), grid, query_stride=2, resize=block.resize_bias)
    p = (q.transpose(2, 3) @ k + bias).softmax(-1)
    u = weighted_values(p, v_map, (q_map.shape[2], q_map.shape[3])) + conv(v_map, block.local, 2)
    return conv(activate(u, block.activation), block.proj) + conv(x, block.conv, 2)
