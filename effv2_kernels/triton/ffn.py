"""The feed-forward block on a GPU: ``blocks.FFN`` in two launches.

1. ``product``: GELU(fc1(x)).
2. ``product``: the depthwise convolution and its GELU are made tile by tile in registers and fed straight to
   fc2, plus x.
"""

from __future__ import annotations

import torch

from effv2_kernels import blocks
from effv2_kernels.triton.launch import FeatureMap, Launch
from effv2_kernels.triton.packing import Packed, matrix, taps, vector
from effv2_kernels.triton.product import depthwise_product, pointwise_product


class FFN(Packed):
    """``blocks.FFN`` with its weights in the kernels' layouts."""

    def __init__(self, block: blocks.FFN, dtype: torch.dtype, device: torch.device | str) -> None:
        self.fc1, self.fc1_bias = matrix(block.fc1_weight, dtype, device), vector(block.fc1_bias, device)
        self.dw, self.dw_bias = taps(block.dw_weight, device), vector(block.dw_bias, device)
        self.fc2, self.fc2_bias = matrix(block.fc2_weight, dtype, device), vector(block.fc2_bias, device)

    def plan(self, x: FeatureMap, precision: str) -> list[Launch]:
        widen = pointwise_product(x, self.fc1, self.fc1_bias, precision, gelu=True)
        narrow = depthwise_product(
            widen.output, self.dw, self.dw_bias, self.fc2, self.fc2_bias, precision,
            stride=1, left_gelu=True, residual=x,
        )  # fmt: skip
        return [widen, narrow]
