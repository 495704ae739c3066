"""One convolution: the step between early stages, first and last layers of others."""

from __future__ import annotations

from torch import Tensor

from effv2_kernels import blocks
from effv2_kernels.reference import layers
from effv2_kernels.reference.activation import activate


def conv(x: Tensor, block: blocks.Conv) -> Tensor:
    """The equation of ``blocks.Conv``. x: (N, in, H, W), any floating dtype; y: (N, out, H / stride, ...)."""
    return activate(layers.conv(x, block.conv, block.stride), block.activation)
