"""The bottleneck 1x1 - depthwise - 1x1 (EfficientFormerV2, section 3.1; MobileNetV2, section 3.3)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from effv2_kernels import blocks
from effv2_kernels.reference.activation import activate
from effv2_kernels.reference.layers import ConvNorm, conv


class FFNLayer(nn.Module):
    """y = fc2(GELU(mid(GELU(fc1(x))))), without the residual. x, y: (N, channels, H, W)."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = ConvNorm(channels, hidden)
        self.mid = ConvNorm(hidden, hidden, 3, groups=hidden)
        self.fc2 = ConvNorm(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc2(F.gelu(self.mid(F.gelu(self.fc1(x)))))
        return y


def ffn(x: Tensor, block: blocks.FFN) -> Tensor:
    """The equation of ``blocks.FFN``. x: (N, in, H, W), any floating dtype; y: (N, out, H / stride, ...)."""
    h = x if block.fc1 is None else activate(conv(x, block.fc1), block.activation)
    y = conv(activate(conv(h, block.dw, block.stride), block.activation), block.fc2)
    return x + y if block.residual else y
