"""One allocation for all buffers of a plan: buffers that are never needed at the same time share bytes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from effv2_kernels.gpu.launch import FeatureMap, Launch

# Loads of 16 bytes and whole cache lines; PyTorch's own allocator hands out multiples of 512.
_ALIGNMENT = 256


def aligned(at: int) -> int:
    """The first place for a buffer that is no less than ``at``."""
    return -(-at // _ALIGNMENT) * _ALIGNMENT


@dataclass(frozen=True)
class Layout:
    """Where each buffer starts, in bytes, and how many bytes there are in all."""

    offsets: dict[FeatureMap, int]
    bytes: int


@dataclass(frozen=True)
class Lifetime:
    """The launches, by index, from the one that writes a buffer to the last one that reads it."""

    first: int
    last: int

    def overlaps(self, other: Lifetime) -> bool:
        return self.first <= other.last and other.first <= self.last


def lifetimes(launches: Sequence[Launch], outside: Collection[FeatureMap]) -> dict[FeatureMap, Lifetime]:
    """Of every buffer that a launch writes and that is not in ``outside``."""
    found: dict[FeatureMap, Lifetime] = {}
    for i, launch in enumerate(launches):
        for value in launch.arguments.values():
            if isinstance(value, FeatureMap) and value in found:
                found[value] = Lifetime(found[value].first, i)
        for buffer in launch.written:
            if buffer not in outside:
                found.setdefault(buffer, Lifetime(i, i))
    return found


def lay_out(launches: Sequence[Launch], outside: Collection[FeatureMap]) -> Layout:
    """Place the largest buffers first, each at the lowest offset that is free during its life.

    outside: buffers with memory of their own, such as outputs.
    """
    alive = lifetimes(launches, outside)
    offsets: dict[FeatureMap, int] = {}
    end = 0
    for buffer in sorted(alive, key=lambda m: (-m.bytes, alive[m].first)):
        taken = sorted(
            (offsets[other], offsets[other] + other.bytes)
            for other in offsets
            if alive[other].overlaps(alive[buffer])
        )
        at = 0
        for start, stop in taken:
            if at + buffer.bytes <= start:
                break
            at = max(at, aligned(stop))
        offsets[buffer] = at
        end = max(end, at + buffer.bytes)
    return Layout(offsets, end)
