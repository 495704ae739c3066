"""One launch of a CUDA kernel: how it runs, and what the compiled kernel takes of the GPU at hand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from effv2_kernels import _cuda
from effv2_kernels.gpu import launch as gpu_launch
from effv2_kernels.gpu.launch import FeatureMap
from effv2_kernels.gpu.resources import SHARED_BYTES, Resources

if TYPE_CHECKING:
    from typing_extensions import Self

FORMATS = {torch.float16: "fp16", torch.bfloat16: "bf16"}

# Blocks of threads that keep an H100 busy: one for each multiprocessor.
BUSY = 132


@dataclass(frozen=True, eq=False)
class Shape(gpu_launch.Tile):
    """Which of the kernels that are compiled for a kind of step, and the fields that go with it."""

    number: int = 0
    name: str = ""

    def __str__(self) -> str:
        sizes = (f"{name}={size}" for name, size in self.blocks.items())
        return " ".join([self.name, *sizes])


def shapes(names: Sequence[str]) -> list[Shape]:
    """One for each of the kernels of a kind, in their order."""
    return [Shape({}, 8, 1, number, name) for number, name in enumerate(names)]


def busiest_first(found: Iterable[Shape], blocks_of: Any) -> list[Shape]:
    """The first that keeps a GPU busy, or else the one with the most blocks of threads, then the others.

    blocks_of: how many there are of a shape. Shapes come with the largest tiles first, which do least twice.
    """
    candidates = list(found)
    best = next((s for s in candidates if blocks_of(s) >= BUSY), None)
    if best is None:
        best = max(candidates, key=blocks_of)
    return [best, *(s for s in candidates if s is not best)]


@dataclass(frozen=True, eq=False, kw_only=True)
class Launch(gpu_launch.Launch):
    """A step of ``csrc/cuda`` on some buffers, for any of its ``tiles``, which are shapes.

    kind: of the step. dtype: what it computes in. Arguments are the step's fields: maps, weights (None where
    there are none), sizes and names.
    """

    compiler: ClassVar[str] = f"cuda-{_cuda.VERSION}"
    shipped: ClassVar[Path] = Path(__file__).with_name("tuned")
    interpreted: ClassVar[bool] = _cuda.emulated

    kind: str
    dtype: torch.dtype
    _steps: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"cuda_{self.kind}"

    @property
    def maps(self) -> list[FeatureMap]:
        """Of the arguments, each once."""
        return list({id(v): v for v in self.arguments.values() if isinstance(v, FeatureMap)}.values())

    def step(self, tile: gpu_launch.Tile, places: Mapping[int, int]) -> Any:
        """The step for a shape. places: the address of each map, by its identity."""
        assert isinstance(tile, Shape)
        fields: dict[str, Any] = dict(tile.blocks)
        for name, value in self.arguments.items():
            if isinstance(value, FeatureMap):
                fields[name] = places[id(value)]
            elif isinstance(value, Tensor):
                fields[name] = value.data_ptr()
            elif value is not None:
                fields[name] = value
        return _cuda.Step(self.kind, FORMATS[self.dtype], tile.number, fields)

    def own_step(self, tile: gpu_launch.Tile) -> Any:
        """The step whose buffers are its maps, in their order."""
        key = str(tile)
        if key not in self._steps:
            places = {id(m): i << _cuda.OFFSET_BITS for i, m in enumerate(self.maps, start=1)}
            self._steps[key] = self.step(tile, places)
        return self._steps[key]

    def run(self, tile: gpu_launch.Tile, memory: Mapping[FeatureMap, Tensor]) -> None:
        device = memory[self.output].device
        stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
        _cuda.launch([self.own_step(tile)], [memory[m].data_ptr() for m in self.maps], stream)

    def trace(self, tile: gpu_launch.Tile, memory: Mapping[FeatureMap, Tensor]) -> None:
        raise NotImplementedError("the CUDA kernels are no operators of Torch's compiler")

    def compile(self, tile: gpu_launch.Tile) -> Resources | None:
        step = self.own_step(tile)
        capability = torch.cuda.get_device_capability()
        most = SHARED_BYTES.get(10 * capability[0] + capability[1], min(SHARED_BYTES.values()))
        if not step.extent.tiles or step.extent.shared_bytes > most:
            return None
        registers, stack = _cuda.resources(step)
        return Resources(registers, stack, step.extent.shared_bytes)

    @classmethod
    def compile_missing(cls, pairs: Sequence[tuple[Self, gpu_launch.Tile]]) -> None:
        """They are all compiled."""
