"""Attention over the whole map, plain or strided (paper section 3.2; timm's Attention2d)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from effv2_kernels import blocks
from effv2_kernels.reference.activation import activate
from effv2_kernels.reference.attention_bias import bias_for
from effv2_kernels.reference.layers import ConvNorm, by_head, conv, weighted_values


def upsample_to(u: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear 2x (align_corners=False) of (N, C, h, w), cropped to ``size``: odd maps were rounded up."""
    u = F.interpolate(u, scale_factor=2.0, mode="bilinear", align_corners=False)
    return u[:, :, : size[0], : size[1]]


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


def attention(x: Tensor, block: blocks.Attention) -> Tensor:
    """The equation of ``blocks.Attention``. x, y: (N, channels, H, W), any floating dtype.

    Raises ResolutionError where the bias does not fit the map and is not to be resized.
    """
    z = x if block.dw is None else conv(x, block.dw, 2)
    grid = (z.shape[2], z.shape[3])
    keys, values = block.heads * block.key_dim, block.heads * block.value_dim
    q_map, k_map, v_map = torch.split(conv(z, block.qkv), [keys, keys, values], dim=1)
    q, k = by_head(q_map, block.heads), by_head(k_map, block.heads)
    logits = q.transpose(2, 3) @ k
    if block.mix1_weight is not None:
        logits = torch.einsum("hg,ngij->nhij", block.mix1_weight.to(x), logits)
    if block.bias is not None:
        logits = logits + bias_for(block.bias.to(x), grid, resize=block.resize_bias)
    p = logits.softmax(-1)
    if block.mix2 is not None:
        mix2, bias2 = block.mix2.weight.to(x), block.mix2.bias.to(x)
        p = torch.einsum("hg,ngij->nhij", mix2, p) + bias2[:, None, None]
    u = weighted_values(p, v_map, grid)
    if block.local is not None:
        u = u + conv(v_map, block.local)
    if block.stride == 2:
        u = upsample_to(u, (x.shape[2], x.shape[3]))
    return x + conv(activate(u, block.activation), block.proj)
