"""``blocks.Conv`` as one product."""

from __future__ import annotations

import torch

from effv2_kernels import blocks
from effv2_kernels.cuda.image_conv import CHANNELS, convolved_image
from effv2_kernels.cuda.launch import Launch
from effv2_kernels.cuda.packing import bias_of_product, image_factor, window_factor
from effv2_kernels.cuda.product import pointwise_product, window_product
from effv2_kernels.gpu.launch import FeatureMap
from effv2_kernels.gpu.packing import Packed


def of_image(block: blocks.Conv) -> bool:
    """Whether it is one that a network begins with."""
    _, channels, kernel, _ = block.conv.weight.shape
    return (channels, kernel, block.stride) == (CHANNELS, 3, 2)


class Conv(Packed):
    """``blocks.Conv`` with its weights in the kernel's layout."""

    def __init__(self, block: blocks.Conv, dtype: torch.dtype, device: torch.device | str) -> None:
        self.outputs, _, self.kernel, _ = block.conv.weight.shape
        self.stride, self.activation = block.stride, block.activation
        self.reads_any_layout = of_image(block)
        layout = image_factor if self.reads_any_layout else window_factor
        self.weight = layout(block.conv.weight, dtype, device)
        self.bias = bias_of_product(block.conv.bias, device)

    def plan(self, x: FeatureMap, precision: str) -> list[Launch]:
        if self.reads_any_layout:
            launch = convolved_image(x, self.weight, self.bias, self.outputs, activation=self.activation)
        elif self.kernel == self.stride == 1:
            launch = pointwise_product(x, self.weight, self.bias, self.outputs, activation=self.activation)
        else:
            launch = window_product(
                x, self.weight, self.bias, self.outputs,
                kernel=self.kernel, stride=self.stride, activation=self.activation,
            )  # fmt: skip
        return [launch]
