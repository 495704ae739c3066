"""Attention over the whole map, plain or strided (paper section 3.2; timm's Attention2d)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from effv2_kernels import blocks
from effv2_kernels.reference.activation import activate
from effv2_kernels.reference.attention_bias import bias_for
from effv2_kernels.reference.layers import by_head, conv, weighted_values


def upsample_to(u: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear 2x (align_corners=False) of (N, C, h, w), cropped to ``size``: odd maps were rounded up."""
    u = F.interpolate(u, scale_factor=2.0, mode="bilinear", align_corners=False)
    return u[:, :, : size[0], : size[1]]


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
