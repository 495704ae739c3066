"""``blocks.Head`` in two launches: the mean over the positions, and a product."""

from __future__ import annotations

import torch

from effv2_kernels import _cuda, blocks
from effv2_kernels.cuda.launch import Launch, shapes
from effv2_kernels.cuda.packing import bias_of_product, right_factor
from effv2_kernels.cuda.product import pointwise_product
from effv2_kernels.gpu.launch import FeatureMap
from effv2_kernels.gpu.packing import Packed


class Head(Packed):
    """``blocks.Head`` with its weights in the kernel's layout."""

    def __init__(self, block: blocks.Head, dtype: torch.dtype, device: torch.device | str) -> None:
        self.classes = block.linear.weight.shape[0]
        self.weight = right_factor(block.linear.weight, dtype, device)
        self.bias = bias_of_product(block.linear.bias, device)

    def plan(self, x: FeatureMap, precision: str) -> list[Launch]:
        y = x.like(x.channels, 1, 1)
        average = Launch(
            kind="mean",
            dtype=x.dtype,
            arguments={
                "images": x.images, "height": x.height, "width": x.width, "channels": x.channels,
                "x": x, "y": y,
            },
            tiles=shapes(_cuda.SHAPES["mean"]),
            output=y,
            macs=0,
        )  # fmt: skip
        return [average, pointwise_product(y, self.weight, self.bias, self.classes)]
