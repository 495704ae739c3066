"""What the networks of a table are for, and what their blocks are called."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from effv2_kernels.families.efficientformer_v2.architecture import Architecture
from effv2_kernels.families.efficientformer_v2.shapes import network_shapes
from effv2_kernels.search.space.space import SearchSpace
from effv2_kernels.shapes import BlockShape


@dataclass(frozen=True)
class Task:
    """As far as a network's time depends on it. img_size: (rows, columns) of images of in_channels."""

    img_size: tuple[int, int]
    in_channels: int
    classes: int

    @classmethod
    def of(cls, space: SearchSpace, classes: int) -> Task:
        """That of a space's networks."""
        return cls(space.img_size, space.in_channels, classes)

    def shapes(self, architecture: Architecture) -> list[BlockShape]:
        """Those of a network's blocks, in order."""
        sizes = {"classes": self.classes, "in_channels": self.in_channels}
        return network_shapes(architecture, self.img_size, **sizes)

    def __str__(self) -> str:
        rows, columns = self.img_size
        channels = "1 channel" if self.in_channels == 1 else f"{self.in_channels} channels"
        return f"{rows}x{columns} images of {channels} and {self.classes} classes"


@lru_cache(maxsize=4096)
def block_names(architecture: Architecture, task: Task) -> tuple[str, ...]:
    """Of a network's blocks, in order: the same for blocks that take the same time."""
    return tuple(str(shape) for shape in task.shapes(architecture))
