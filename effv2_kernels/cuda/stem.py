"""``blocks.Stem`` in one launch, see ``csrc/cuda/blocks/stem.h``, or in two if a tile is too wide for it."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from effv2_kernels import _cuda, blocks
from effv2_kernels.cuda.image_conv import convolved_image, image_fields
from effv2_kernels.cuda.launch import Launch, Shape, fitting
from effv2_kernels.cuda.packing import bias_of_product, image_factor, window_factor
from effv2_kernels.cuda.product import window_product
from effv2_kernels.gpu.launch import FeatureMap, blocks_of
from effv2_kernels.gpu.packing import Packed

# Pixels of a tile of the output, largest first; rows of this family's maps are multiples of 14.
_TILES = ((8, 14), (4, 14), (2, 14), (2, 7))

# What channels between the convolutions are padded to: they are the depth of the second.
_DEPTH = 16


class Stem(Packed):
    """``blocks.Stem`` with its weights in the kernel's layouts."""

    reads_any_layout = True

    def __init__(self, block: blocks.Stem, dtype: torch.dtype, device: torch.device | str) -> None:
        self.activation = block.activation
        self.mid, self.outputs = block.conv1.weight.shape[0], block.conv2.weight.shape[0]
        self.conv1, self.conv1_bias = (
            image_factor(block.conv1.weight, dtype, device),
            bias_of_product(block.conv1.bias, device),
        )
        padded = F.pad(block.conv2.weight, (0, 0, 0, 0, 0, -self.mid % _DEPTH))
        self.depth = padded.shape[1]
        self.conv2, self.conv2_bias = (
            window_factor(padded, dtype, device),
            bias_of_product(block.conv2.bias, device),
        )

    def plan(self, x: FeatureMap, precision: str) -> list[Launch]:
        whole = self._whole(x)
        if whole:
            return whole
        first = convolved_image(x, self.conv1, self.conv1_bias, self.depth, activation=self.activation)
        second = window_product(
            first.output, self.conv2, self.conv2_bias, self.outputs,
            kernel=3, stride=2, activation=self.activation,
        )  # fmt: skip
        return [first, second]

    def _whole(self, x: FeatureMap) -> list[Launch]:
        mid = x.like(self.mid, blocks_of(x.height, 2), blocks_of(x.width, 2))
        y = x.like(self.outputs, blocks_of(mid.height, 2), blocks_of(mid.width, 2))
        arguments = {
            **image_fields(x),
            "mid": mid.channels, "mid_height": mid.height, "mid_width": mid.width,
            "outputs": y.channels, "y_height": y.height, "y_width": y.width, "activation": self.activation,
            "x": x, "conv1": self.conv1, "conv1_bias": self.conv1_bias,
            "conv2": self.conv2, "conv2_bias": self.conv2_bias, "y": y,
        }  # fmt: skip

        found = fitting("stem", x.dtype, arguments, (
            Shape({"tile_height": rows, "tile_width": columns}, 8, 1, number, name)
            for rows, columns in _TILES
            for number, name in enumerate(_cuda.SHAPES["stem"])
        ))  # fmt: skip
        if not found:
            return []
        # Of each tile the one with the least registers.
        least: dict[tuple[int, int], Shape] = {}
        for shape in found:
            least.setdefault((shape.blocks["tile_height"], shape.blocks["tile_width"]), shape)
        return [
            Launch(
                kind="stem", dtype=x.dtype, arguments=arguments, tiles=[*least.values()], output=y,
                macs=9 * (mid.elements * x.channels + y.elements * mid.channels),
            )
        ]  # fmt: skip
