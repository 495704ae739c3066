"""The step between early stages: one 3x3 convolution with stride 2."""

from __future__ import annotations

from torch import Tensor, nn

from effv2_kernels import blocks
from effv2_kernels.reference.layers import ConvNorm, conv


class ConvDownsampleLayer(nn.Module):
    """y = BN(conv(x)). x: (N, in_channels, H, W); y: (N, out_channels, ceil(H / 2), ceil(W / 2))."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = ConvNorm(in_channels, out_channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y


def conv_downsample(x: Tensor, block: blocks.ConvDownsample) -> Tensor:
    """The equation of ``blocks.ConvDownsample``. x: (N, in, H, W), any floating dtype."""
    return conv(x, block.conv, 2)
