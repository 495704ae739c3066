"""The stem on a GPU: ``blocks.Stem`` in two launches.

1. ``image_conv``: the first convolution, which reads an image of any strides, and its activation.
2. ``conv``: the second one, and its activation.

In one launch, the first convolution would be made again for each tap of the second one that reads it: the
largest map of the network would not exist, but it took 2.8 times the instructions.
"""

from __future__ import annotations

import torch

from effv2_kernels import blocks
from effv2_kernels.gpu.launch import FeatureMap
from effv2_kernels.gpu.packing import Packed, conv_matrix, image_matrix, vector
from effv2_kernels.triton.conv import strided_conv
from effv2_kernels.triton.image_conv import convolved_image
from effv2_kernels.triton.launch import Launch


class Stem(Packed):
    """``blocks.Stem`` with its weights in the kernels' layouts."""

    reads_any_layout = True

    def __init__(self, block: blocks.Stem, dtype: torch.dtype, device: torch.device | str) -> None:
        self.w1, self.bias1 = (
            image_matrix(block.conv1.weight, dtype, device),
            vector(block.conv1.bias, device),
        )
        self.w2, self.bias2 = conv_matrix(block.conv2.weight, dtype, device), vector(block.conv2.bias, device)
        self.activation = block.activation

    def plan(self, x: FeatureMap, precision: str) -> list[Launch]:
        first = convolved_image(x, self.w1, self.bias1, activation=self.activation)
        second = strided_conv(first.output, self.w2, self.bias2, precision, activation=self.activation)
        return [first, second]
