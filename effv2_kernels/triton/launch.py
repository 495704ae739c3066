"""What one launch of a kernel is, before and after its tile is chosen. Nothing here needs a GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Element offsets of this size and above do not fit in 32 bits.
WIDE_ELEMENTS = 2**31


@dataclass(frozen=True, eq=False)
class FeatureMap:
    """A buffer of a plan: (images, height, width, channels), dense unless ``strides`` are given.

    strides: of images, channels, rows and columns, in elements; only an image from outside has them.
    """

    images: int
    height: int
    width: int
    channels: int
    dtype: torch.dtype
    strides: tuple[int, int, int, int] | None = None

    @property
    def pixels(self) -> int:
        return self.images * self.height * self.width

    @property
    def elements(self) -> int:
        return self.pixels * self.channels

    @property
    def bytes(self) -> int:
        return self.elements * self.dtype.itemsize

    @property
    def reach(self) -> int:
        """Elements from the first to the last one, which strides may take far apart."""
        if self.strides is None:
            return self.elements
        sizes = (self.images, self.channels, self.height, self.width)
        return 1 + sum((size - 1) * stride for size, stride in zip(sizes, self.strides, strict=True))

    def like(self, channels: int, height: int | None = None, width: int | None = None) -> FeatureMap:
        """A new map of the same images and dtype."""
        return FeatureMap(
            self.images,
            self.height if height is None else height,
            self.width if width is None else width,
            channels,
            self.dtype,
        )


@dataclass(frozen=True, eq=False)
class Tile:
    """How a kernel cuts its work: block sizes by constexpr name, warps of a program, pipeline stages."""

    blocks: Mapping[str, int]
    warps: int = 4
    stages: int = 2

    def __str__(self) -> str:
        sizes = " ".join(f"{name}={size}" for name, size in self.blocks.items())
        return f"{sizes} warps={self.warps} stages={self.stages}"


def tile(warps: int = 4, stages: int = 2, **blocks: int) -> Tile:
    return Tile(blocks, warps, stages)


@dataclass(frozen=True, eq=False)
class Launch:
    """One kernel on some buffers, for any of its ``tiles``.

    arguments: every runtime argument in the kernel's order: buffers, weights (tensors), integers.
    constants: the constexprs that do not depend on the tile. programs: size of the grid for a tile.
    tiles: candidates; the first is the one to use unmeasured. macs: multiply-adds that the block needs, not
    those that the kernel repeats; resizing and means are not counted. scratch: a buffer among the arguments
    that this launch alone uses.
    """

    kernel: Any
    arguments: dict[str, Any]
    constants: dict[str, Any]
    programs: Callable[[Tile], int]
    tiles: Sequence[Tile]
    output: FeatureMap
    macs: int
    scratch: FeatureMap | None = None

    @property
    def written(self) -> tuple[FeatureMap, ...]:
        """The buffers that it fills."""
        return (self.output,) if self.scratch is None else (self.scratch, self.output)

    @property
    def name(self) -> str:
        name: str = self.kernel.__name__
        return name

    def settings(self, tile: Tile) -> tuple[dict[str, Any], dict[str, Any]]:
        """(constexprs, options) to compile and launch the kernel with."""
        options = {"num_warps": tile.warps, "num_stages": tile.stages}
        return {**self.constants, **tile.blocks}, options

    @property
    def key(self) -> str:
        """What a choice of tile depends on: kernel, images, dtypes, constants and sizes."""
        parts = [self.name, f"images={self.output.images}"]  # of which some kernels are told nothing
        for name, value in self.arguments.items():
            if name == "images":
                continue
            is_buffer = isinstance(value, (Tensor, FeatureMap))
            parts.append(f"{name}={str(value.dtype).removeprefix('torch.') if is_buffer else value}")
        return " ".join([*parts, *(f"{name}={value}" for name, value in self.constants.items())])

    @property
    def bytes(self) -> int:
        """Of all buffers and weights, each counted once."""
        seen = {id(v): v for v in self.arguments.values() if isinstance(v, (Tensor, FeatureMap))}
        return sum(v.nbytes if isinstance(v, Tensor) else v.bytes for v in seen.values())


def is_wide(*buffers: FeatureMap | Tensor) -> bool:
    """Whether addresses into one of these need 64 bits."""
    return any((b.numel() if isinstance(b, Tensor) else b.reach) >= WIDE_ELEMENTS for b in buffers)


def round_up_to_power(size: int, least: int = 16) -> int:
    """The smallest power of two that is no less than ``size`` and ``least``."""
    return max(least, 1 << (size - 1).bit_length())


def blocks_of(count: int, size: int) -> int:
    return -(-count // size)
