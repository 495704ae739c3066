"""The stem: two 3x3 convolutions with stride 2 (paper section 3.1; timm's Stem4)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from effv2_kernels import blocks
from effv2_kernels.reference.activation import activate
from effv2_kernels.reference.layers import ConvNorm, conv


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


def stem(x: Tensor, block: blocks.Stem) -> Tensor:
    """The equation of ``blocks.Stem``. x: (N, in, H, W), any floating dtype; y: (N, out, H/4, W/4)."""
    y = activate(conv(x, block.conv1, 2), block.activation)
    return activate(conv(y, block.conv2, 2), block.activation)
