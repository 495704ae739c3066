"""What one launch of a kernel is, before and after its tile is chosen. Nothing here needs a GPU."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from effv2_kernels.errors import UnavailableError
from effv2_kernels.gpu.resources import Resources

if TYPE_CHECKING:
    from typing_extensions import Self


class LaunchError(UnavailableError):
    """The driver did not take a launch; nothing of the call is to be used."""


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
    """How a kernel cuts its work: block sizes by name, warps of a program, pipeline stages."""

    blocks: Mapping[str, int]
    warps: int = 4
    stages: int = 2

    def __str__(self) -> str:
        sizes = " ".join(f"{name}={size}" for name, size in self.blocks.items())
        return f"{sizes} warps={self.warps} stages={self.stages}"


def tile(warps: int = 4, stages: int = 2, **blocks: int) -> Tile:
    return Tile(blocks, warps, stages)


class Task(NamedTuple):
    """A tile of one launch's part, by the number of that, and the flags that it raises and waits for."""

    launch: int
    tile: int
    raises: range
    waits: tuple[range, ...]


class OneLaunch(Protocol):
    """The launches of a network as tasks of a single one.

    blocks: of threads, which take tasks.
    """

    blocks: int

    @property
    def bytes(self) -> int:
        """Of all activations but the outputs, each in memory of its own."""

    @property
    def control_bytes(self) -> int:
        """Of the memory in which tasks are counted: zero at first, and for one call at a time."""

    @property
    def tasks(self) -> Iterable[Task]:
        """In the order in which they are taken."""

    def run(
        self, images: Tensor, arena: Tensor, control: Tensor, outputs: Sequence[Tensor] | None = None
    ) -> list[Tensor]:
        """The outputs (N, C, H, W) in channels_last, on the current stream; nothing waits for the GPU.

        images: as planned. arena: (``bytes``,) uint8. control: (``control_bytes``,) uint8. outputs: memory
        for the outputs, flat; None allocates it.
        """


@dataclass(frozen=True, eq=False, kw_only=True)
class Launch(ABC):
    """One kernel on some buffers, for any of its ``tiles``. A backend has a subclass for its kernels.

    arguments: every runtime argument in the kernel's order: buffers, weights (tensors), integers.
    tiles: candidates; the first is the one to use unmeasured. macs: multiply-adds that the block needs, not
    those that the kernel repeats; resizing and means are not counted. scratch: a buffer among the arguments
    that this launch alone uses.

    backend: its name. compiler: its name and version, in names of files; what another one makes may be
    fastest with other tiles. build: what tells the kernels of this installation from others of the same
    version, where their code is not compiled here. shipped: the folder with the tiles that are shipped, one
    file for each kind of GPU. interpreted: whether the kernels run without being compiled, so that no tile is
    better than another. trusted: whether they may be used on a GPU where nobody has compared what they
    compute (``parity``).
    """

    backend: ClassVar[str] = ""
    compiler: ClassVar[str]
    build: ClassVar[str] = ""
    shipped: ClassVar[Path]
    interpreted: ClassVar[bool] = False
    trusted: ClassVar[bool] = True

    arguments: dict[str, Any]
    tiles: Sequence[Tile]
    output: FeatureMap
    macs: int
    scratch: FeatureMap | None = None

    @property
    @abstractmethod
    def name(self) -> str:
        """Of the kernel; no other backend has one of this name."""

    @abstractmethod
    def run(self, tile: Tile, memory: Mapping[FeatureMap, Tensor]) -> None:
        """Launch on the current stream. memory: the tensor of every buffer."""

    @abstractmethod
    def trace(self, tile: Tile, memory: Mapping[FeatureMap, Tensor]) -> None:
        """As ``run``, into the graph that Torch's compiler is tracing."""

    @abstractmethod
    def compile(self, tile: Tile) -> Resources | None:
        """Compile for the current GPU, or find what was compiled; None where it does not fit."""

    @classmethod
    @abstractmethod
    def compile_missing(cls, pairs: Sequence[tuple[Self, Tile]]) -> None:
        """Compile launches with their tiles for the current GPU, all at once that ``compile`` would not find.

        What does not compile is left for ``compile`` to find out.
        """

    def shared_bytes(self, tile: Tile) -> int | None:
        """Of shared memory that a program takes, whether it fits or not; None where only compiling tells."""
        return None

    @property
    def tile_in_one(self) -> Tile | None:
        """Its tile where a whole network is one launch (``one_launch``); None where it cannot be a part."""
        return None

    @classmethod
    def join(
        cls, launches: Sequence[Self], image: FeatureMap, outputs: Sequence[FeatureMap], device: torch.device
    ) -> OneLaunch:
        """One launch of these, in order, each with its ``tile_in_one``.

        image: what the first one reads. outputs: the maps that are returned.
        """
        raise NotImplementedError(f"{cls.__name__} has no tile in one launch")

    @property
    def written(self) -> tuple[FeatureMap, ...]:
        """The buffers that it fills."""
        return (self.output,) if self.scratch is None else (self.scratch, self.output)

    @property
    def key(self) -> str:
        """What a choice of tile depends on: kernel, images, dtypes and sizes, and what it is compiled for."""
        parts = [self.name, f"images={self.output.images}"]  # of which some kernels are told nothing
        for name, value in self.arguments.items():
            if name == "images":
                continue
            is_buffer = isinstance(value, (Tensor, FeatureMap))
            parts.append(f"{name}={str(value.dtype).removeprefix('torch.') if is_buffer else value}")
        return " ".join(parts)

    @property
    def bytes(self) -> int:
        """Of all buffers and weights, each counted once."""
        seen = {id(v): v for v in self.arguments.values() if isinstance(v, (Tensor, FeatureMap))}
        return sum(v.nbytes if isinstance(v, Tensor) else v.bytes for v in seen.values())

    def values(self, memory: Mapping[FeatureMap, Tensor]) -> dict[str, Any]:
        """The arguments, with a tensor for each buffer."""
        return {
            name: memory[value] if isinstance(value, FeatureMap) else value
            for name, value in self.arguments.items()
        }


def is_wide(*buffers: FeatureMap | Tensor) -> bool:
    """Whether addresses into one of these need 64 bits."""
    return any((b.numel() if isinstance(b, Tensor) else b.reach) >= WIDE_ELEMENTS for b in buffers)


def round_up_to_power(size: int, least: int = 16) -> int:
    """The smallest power of two that is no less than ``size`` and ``least``."""
    return max(least, 1 << (size - 1).bit_length())


def blocks_of(count: int, size: int) -> int:
    return -(-count // size)
