"""One convolution: the step between early stages, first and last layers of others."""

from __future__ import annotations

from torch import Tensor, nn

from effv2_kernels import blocks
from effv2_kernels.reference import layers
from effv2_kernels.reference.activation import activate
from effv2_kernels.reference.layers import ConvNorm


class ConvDownsampleLayer(nn.Module):
    """y = BN(conv(x)). x: (N, in_channels, H, W); y: (N, out_channels, ceil(H / 2), ceil(W / 2))."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = ConvNorm(in_channels, out_channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y


def conv(x: Tensor, block: blocks.Conv) -> Tensor:
    """The equation of ``blocks.Conv``. x: (N, in, H, W), any floating dtype; y: (N, out, H / stride, ...)."""
    return activate(layers.conv(x, block.conv, block.stride), block.activation)
