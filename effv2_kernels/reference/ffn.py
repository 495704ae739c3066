"""The bottleneck 1x1 - depthwise - 1x1 (EfficientFormerV2, section 3.1; MobileNetV2, section 3.3)."""

from __future__ import annotations

from torch import Tensor

from effv2_kernels import blocks
from effv2_kernels.reference.activation import activate
from effv2_kernels.reference.layers import conv


def ffn(x: Tensor, block: blocks.FFN) -> Tensor:
    """The equation of ``blocks.FFN``. x: (N, in, H, W), any floating dtype; y: (N, out, H / stride, ...)."""
    h = x if block.fc1 is None else activate(conv(x, block.fc1), block.activation)
    y = conv(activate(conv(h, block.dw, block.stride), block.activation), block.fc2)
    return x + y if block.residual else y
