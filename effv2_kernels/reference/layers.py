"""What several blocks of the trainable model share: convolution + BatchNorm, and the layer scale.

The attribute names give the state-dict keys, which are those of timm's EfficientFormerV2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


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
