"""What every engine offers, whatever it runs on: who explains, times or tunes a network asks nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from torch import Tensor

# Told what is done now, and the share of the work that is done.
Progress: TypeAlias = Callable[[str, float], None]


@dataclass(frozen=True)
class KernelRow:
    """One launch on a GPU."""

    kernel: str
    tile: str  # block sizes, warps of a program, pipeline stages
    registers: int | None  # of each thread; None where kernels are interpreted, and within one launch
    shared: int | None  # bytes of shared memory of one program


@dataclass(frozen=True)
class Decision:
    """What runs a block on a GPU, of several backends and ways to."""

    backend: str
    way: str  # of those that the backend has, such as "whole"; "" where it has one
    why: str  # "" where there was nothing to choose


@dataclass(frozen=True)
class TaskRow:
    """A tile of a network that runs in one launch; tasks are taken in order."""

    launch: int  # by its number
    kernel: str
    tile: int  # of the launch, by its number
    raises: range  # flags, when it is done
    waits: tuple[range, ...]  # for flags of those that it reads


@dataclass(frozen=True)
class OneLaunchRow:
    """A whole network as one launch on a GPU."""

    used: bool
    why: str  # it is used, or not
    launches: int = 0  # that it is made of
    blocks: int = 0  # of threads
    tasks: tuple[TaskRow, ...] = ()


@dataclass(frozen=True)
class Timing:
    """What an engine measured of a batch, block by block, and of the machine in the same run."""

    milliseconds: tuple[float, ...]
    megabytes: tuple[float | None, ...]  # that each block reads and writes, where that is known
    threads: int | None  # None on a GPU
    peak_gflops: float
    peak_gbytes: float | None = None  # GB/s


class Engine(Protocol):
    """A network of packed blocks, ready to run. Calls may come from several threads at once.

    Methods that take images raise InputError for images that the network does not take, and all that take
    images or their size raise ResolutionError where an attention bias does not fit.
    """

    @property
    def in_channels(self) -> int:
        """Of the images."""

    @property
    def last_size(self) -> tuple[int, int] | None:
        """(rows, columns) of the input of the last call, None before the first one."""

    @property
    def packed_bytes(self) -> int:
        """Bytes of the packed weights."""

    def run(self, x: Tensor, threads: int | None = None, stop: int = 0) -> list[Tensor]:
        """The outputs for x (N, C, H, W): feature maps (N, C, H, W) in channels_last, or logits (N, classes).

        threads: of the CPU; None is ``torch.get_num_threads()``. stop: run so many blocks only, and return
        the map that the last of them makes; 0 is the whole network.
        """

    def forget(self) -> None:
        """Be as before the first call: ``last_size`` is None."""

    def block_shapes(self, height: int, width: int) -> list[tuple[int, int, int]]:
        """(channels, height, width) of each block's output."""

    def block_macs(self, height: int, width: int) -> list[int]:
        """Multiply-adds of each block for one image."""

    def describe(self, height: int, width: int) -> list[tuple[KernelRow, ...]]:
        """The launches of each block on a GPU, for the last batch of this size; nothing elsewhere."""

    def decisions(self, height: int, width: int) -> list[Decision]:
        """What runs each block on a GPU, of the same batch as ``describe``; nothing elsewhere."""

    def one_launch(self, height: int, width: int) -> OneLaunchRow | None:
        """The network as one launch, of the same batch; None where no kernels can be joined to one."""

    def block_times(self, x: Tensor, threads: int | None) -> tuple[float, ...]:
        """Milliseconds of each block in one run for the images x.

        On a GPU each launch is replayed by itself for a time of its own.
        """

    def profile(self, x: Tensor, threads: int | None, *, repeats: int, warmup: int) -> Timing:
        """Time each block for the images x; the median of ``repeats`` runs behind ``warmup`` others.

        On a GPU each launch is replayed by itself for a time of its own, and both count for nothing.
        """

    def tune(self, x: Tensor, progress: Progress) -> dict[str, dict[str, float]]:
        """Measure which kernels are the fastest for images like x, in which tiles, and use these from now on.

        Returns the milliseconds of each tile that was measured, by the key of its launch.

        Raises UnavailableError where there is nothing to choose.
        """
