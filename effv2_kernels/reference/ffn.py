"""The unified feed-forward block: 1x1, depthwise 3x3, 1x1 (paper section 3.1; timm's ConvMlpWithNorm)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from effv2_kernels import blocks
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
    """The equation of ``blocks.FFN``. x, y: (N, channels, H, W), any floating dtype."""
    return x + conv(F.gelu(conv(F.gelu(conv(x, block.fc1)), block.dw)), block.fc2)
