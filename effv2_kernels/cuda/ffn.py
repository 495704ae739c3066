"""The bottleneck, ``blocks.FFN``, in one launch to three: see ``csrc/cuda/blocks/ffn.h``.

Whole, for many pixels: the hidden map never is in memory. By channels, for few: ``widen`` makes some hidden
channels of all pixels around a tile, and a product narrows them. In halves, a product makes the hidden map
and ``narrow`` reads it; without fc1 it is that alone. Shared, for very few: whole, but several blocks of
threads share the hidden channels of a tile, and the last of them adds their sums. Which is the fastest, a
clock says. In parts, for widths of which nothing else holds a tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from effv2_kernels import _cuda, blocks
from effv2_kernels.cuda.depthwise import depthwise
from effv2_kernels.cuda.launch import BUSY, Launch, Shape, fitting, require_countable
from effv2_kernels.cuda.packing import bias_of_product, right_factor
from effv2_kernels.cuda.product import pointwise_product
from effv2_kernels.gpu import launch as gpu_launch
from effv2_kernels.gpu.alternatives import Alternative
from effv2_kernels.gpu.launch import FeatureMap, blocks_of
from effv2_kernels.gpu.packing import Packed, taps, vector

# Pixels of a tile of the output, the best unmeasured first: the largest makes least around it twice, but its
# sums leave registers for one block of threads on a multiprocessor.
_TILES = ((8, 14), (14, 14), (7, 14), (6, 14), (4, 14), (7, 7), (4, 7), (2, 7))

# Whole where so many blocks of threads have a tile of the best size, or a map has so many pixels: one launch
# less is then worth more than blocks that are few. Counted, not measured: see bench/cuda/estimate.py.
MANY = BUSY
_LARGE_MAP = 512


# Blocks of threads that share a tile, and threads of each.
_SPLITS = (2, 4, 8)
_THREADS = 256


def _sums_of_thread(shape: Shape) -> int:
    """Of a tile: sixteen for each product of its warp."""
    return 16 * int(shape.name.split("x")[1])


class FFN(Packed):
    """``blocks.FFN`` with its weights in the kernels' layouts."""

    def __init__(self, block: blocks.FFN, dtype: torch.dtype, device: torch.device | str) -> None:
        self.activation, self.stride, self.residual = block.activation, block.stride, block.residual
        self.fc1 = self.fc1_bias = None
        if block.fc1 is not None:
            self.fc1 = right_factor(block.fc1.weight, dtype, device)
            self.fc1_bias = bias_of_product(block.fc1.bias, device)
        self.outputs, self.hidden = block.fc2.weight.shape
        self.dw, self.dw_bias = taps(block.dw.weight, dtype, device), vector(block.dw.bias, device)
        self.fc2 = right_factor(block.fc2.weight, dtype, device)
        self.fc2_bias = bias_of_product(block.fc2.bias, device)

    def plan(self, x: FeatureMap, precision: str) -> Sequence[gpu_launch.Launch]:
        return self.alternatives(x, precision)[0].launches

    def alternatives(self, x: FeatureMap, precision: str) -> Sequence[Alternative]:
        if self.fc1 is None:
            return [Alternative.of(self.narrow(x) or self.in_parts(x))]
        ways = {"by channels": self.by_channels(x), "whole": self.whole(x), "in halves": self.in_halves(x)}
        many = blocks_of(x.height, self.stride * 8) * blocks_of(x.width, self.stride * 14) * x.images >= MANY
        if many or blocks_of(x.height, self.stride) * blocks_of(x.width, self.stride) >= _LARGE_MAP:
            ways = {"whole": ways.pop("whole"), **ways}
        if not many:
            ways["shared"] = self.shared(x)
        found = [Alternative.of(launches, way) for way, launches in ways.items() if launches]
        return found or [Alternative.of(self.in_parts(x), "in parts")]

    def whole(self, x: FeatureMap) -> list[Launch]:
        """In one launch; nothing where that does not fit."""
        return self._launch("whole", x, residual=x if self.residual else None)

    def shared(self, x: FeatureMap) -> list[Launch]:
        """Whole, with several blocks of threads for a tile; nothing where that does not fit."""
        return self._launch("whole", x, residual=x if self.residual else None, splits=_SPLITS)

    def narrow(self, wide: FeatureMap, x: FeatureMap | None = None) -> list[Launch]:
        """What follows fc1; nothing where that does not fit.

        x: of the block, where that has fc1.
        """
        return self._launch("narrow", wide, residual=(x or wide) if self.residual else None)

    def in_halves(self, x: FeatureMap) -> list[Launch]:
        """fc1 as a product, and ``narrow``; nothing where that does not fit."""
        widen = self._fc1(x)
        narrow = self.narrow(widen.output, x)
        return [widen, *narrow] if narrow else []

    def by_channels(self, x: FeatureMap) -> list[Launch]:
        """``widen`` and a product; nothing where a tile has too many channels."""
        widen = self._launch("widen", x)
        return [*widen, self._fc2(widen[-1].output, x)] if widen else []

    def in_parts(self, x: FeatureMap) -> list[Launch]:
        """A launch for each convolution, of any width."""
        launches, wide = [], x
        if self.fc1 is not None:
            launches.append(self._fc1(x))
            wide = launches[-1].output
        launches.append(
            depthwise(wide, self.dw, self.dw_bias, stride=self.stride, activation=self.activation)
        )
        return [*launches, self._fc2(launches[-1].output, x)]

    def _fc1(self, x: FeatureMap) -> Launch:
        assert self.fc1 is not None
        assert self.fc1_bias is not None
        return pointwise_product(x, self.fc1, self.fc1_bias, self.hidden, activation=self.activation)

    def _fc2(self, made: FeatureMap, x: FeatureMap) -> Launch:
        """x: of the block."""
        residual = x if self.residual else None
        return pointwise_product(made, self.fc2, self.fc2_bias, self.outputs, residual=residual)

    def _launch(
        self, part: str, x: FeatureMap, residual: FeatureMap | None = None, splits: Sequence[int] = (1,)
    ) -> list[Launch]:
        """Of ffn.h; nothing where no registers or shared memory hold a tile."""
        require_countable(x)
        height, width = blocks_of(x.height, self.stride), blocks_of(x.width, self.stride)
        y = x.like(self.hidden if part == "widen" else self.outputs, height, width)
        arguments: dict[str, Any] = {
            "part": part, "images": x.images, "height": x.height, "width": x.width, "channels": x.channels,
            "y_height": height, "y_width": width, "hidden": self.hidden, "outputs": self.outputs,
            "stride": self.stride, "activation": self.activation, "x": x,
            "fc1": self.fc1, "fc1_bias": self.fc1_bias, "dw": self.dw, "dw_bias": self.dw_bias,
            "fc2": self.fc2, "fc2_bias": self.fc2_bias, "residual": residual, "y": y,
        }  # fmt: skip
        if part == "widen":
            arguments |= {"fc2": None, "fc2_bias": None}
        if part == "narrow":
            arguments |= {"fc1": None, "fc1_bias": None}
        found = self._shapes(part, arguments, y, splits)
        if not found:
            return []
        parts = counters = None
        if splits != (1,):
            # Of the largest; a tile whose sums are shared has two counters.
            blocks = [shape.blocks["splits"] * self._places(shape, y) for shape in found]
            sums = [count * _sums_of_thread(shape) for count, shape in zip(blocks, found, strict=True)]
            parts = FeatureMap(1, 1, max(sums), _THREADS, torch.float32)
            counters = FeatureMap(1, 1, max(self._places(shape, y) for shape in found), 2, torch.float32)
            arguments |= {"parts": parts, "arrivals": counters}
        wide = 0 if part == "narrow" else x.pixels * self.hidden * x.channels
        narrowed = 0 if part == "widen" else y.pixels * self.hidden * self.outputs
        return [
            Launch(
                kind="ffn", dtype=x.dtype, arguments=arguments, tiles=found, output=y,
                macs=wide + 9 * y.pixels * self.hidden + narrowed, scratch=parts, counters=counters,
            )
        ]  # fmt: skip

    @staticmethod
    def _places(shape: Shape, y: FeatureMap) -> int:
        """Tiles of y."""
        rows, columns = shape.blocks["tile_height"], shape.blocks["tile_width"]
        return y.images * blocks_of(y.height, rows) * blocks_of(y.width, columns)

    def _shapes(
        self, part: str, arguments: dict[str, Any], y: FeatureMap, splits: Sequence[int]
    ) -> Sequence[Shape]:
        """Those that fit. splits: at most as many as there are slices; by channels, all of those."""
        names = _cuda.SHAPES["widen" if part == "widen" else "ffn"]

        def splits_of(name: str) -> Sequence[int]:
            slices = blocks_of(self.hidden, int(name.split("x")[0]))
            return (slices,) if part == "widen" else [count for count in splits if count <= slices]

        return fitting("ffn", y.dtype, arguments, (
            Shape({"tile_height": rows, "tile_width": columns, "splits": count}, 8, 1, number, name)
            for rows, columns in _TILES
            if columns <= 7 * blocks_of(y.width, 7) and rows <= max(y.height, 2)
            for number, name in enumerate(names)
            for count in splits_of(name)
        ))  # fmt: skip
