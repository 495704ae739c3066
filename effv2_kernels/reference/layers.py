"""What several blocks share: convolutions, heads, and in the trainable model BatchNorm and layer scale.

The attribute names give the state-dict keys, which are those of timm's EfficientFormerV2.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from effv2_kernels.blocks import Layer


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
