"""The stem: two 3x3 convolutions with stride 2 (paper section 3.1; timm's Stem4)."""

from __future__ import annotations

from torch import Tensor

from effv2_kernels import blocks
from effv2_kernels.reference.activation import activate
from effv2_kernels.reference.layers import conv


def stem(x: Tensor, block: blocks.Stem) -> Tensor:
    """The equation of ``blocks.Stem``. x: (N, in, H, W), any floating dtype; y: (N, out, H/4, W/4)."""
    y = activate(conv(x, block.conv1, 2), block.activation)
    return activate(conv(y, block.conv2, 2), block.activation)
