"""The head: mean over the map, and a linear classifier."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from effv2_kernels import blocks


def head(x: Tensor, block: blocks.Head) -> Tensor:
    """The equation of ``blocks.Head``. x: (N, channels, H, W), any floating dtype; y: (N, classes)."""
    return F.linear(x.mean(dim=(2, 3)), block.linear.weight.to(x), block.linear.bias.to(x))
