"""What several blocks share: convolutions, and what each head has for each token."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from effv2_kernels.blocks import Layer


def conv(x: Tensor, layer: Layer, stride: int = 1) -> Tensor:
    """The layer's convolution of x: (N, inputs, H, W), with padding ``kernel // 2``, in x's dtype.

    The weight says what it is: 1x1 (outputs, inputs), depthwise (channels, k, k) or (outputs, inputs, k, k).
    """
    weight = layer.weight.to(x)
    groups = 1
    if weight.ndim == 2:
        weight = weight[:, :, None, None]
    elif weight.ndim == 3:
        weight, groups = weight[:, None], weight.shape[0]
    return F.conv2d(x, weight, layer.bias.to(x), stride, weight.shape[-1] // 2, groups=groups)


def by_head(x: Tensor, heads: int) -> Tensor:
    """(N, heads * d, H, W) -> (N, heads, d, H * W): what each head has for each token."""
    n, channels, rows, cols = x.shape
    return x.reshape(n, heads, channels // heads, rows * cols)


def weighted_values(p: Tensor, v_map: Tensor, grid: tuple[int, int]) -> Tensor:
    """Sum of values over the keys, as a map.

    p: (N, heads, queries, keys); v_map: (N, heads * d, H, W); -> (N, heads * d, *grid), one query each.
    """
    u = by_head(v_map, p.shape[1]) @ p.transpose(2, 3)  # (N, heads, d, queries)
    return u.reshape(v_map.shape[0], v_map.shape[1], *grid)
