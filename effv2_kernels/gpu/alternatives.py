"""The ways to run a block: those of one backend, or of several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from effv2_kernels.gpu.launch import Launch, Tile


@dataclass(frozen=True, eq=False)
class Alternative:
    """Launches that compute a block, in order; the output of the last one is the block's.

    backend: whose they are. way: which of several that the backend has, or "". why_not: why it cannot be used
    for this input, and then there are no launches.
    """

    backend: str
    way: str
    launches: Sequence[Launch]
    why_not: str = ""

    @classmethod
    def of(cls, launches: Sequence[Launch], way: str = "") -> Alternative:
        return cls(launches[0].backend, way, launches)

    @property
    def name(self) -> str:
        """Among the alternatives of its block, e.g. "cuda whole"."""
        return f"{self.backend} {self.way}".strip()

    @property
    def trusted(self) -> bool:
        """Whether it may be used unchecked."""
        return all(launch.trusted for launch in self.launches)

    @property
    def joinable(self) -> bool:
        """Whether it can be a part of one launch of a whole network."""
        return bool(self.launches) and all(launch.tile_in_one is not None for launch in self.launches)

    def key(self, tiles: Sequence[Tile]) -> str:
        """What the time of its launches depends on, and whether their kernels compute the right thing."""
        return key_of(self.launches, tiles)


def key_of(launches: Sequence[Launch], tiles: Sequence[Tile]) -> str:
    """Of launches one behind the other, with their tiles."""
    return " | ".join(f"{launch.key} [{tile}]" for launch, tile in zip(launches, tiles, strict=True))
