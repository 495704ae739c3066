"""A whole network in one launch: see ``csrc/cuda/network.h``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from effv2_kernels import _cuda
from effv2_kernels.cuda.launch import FORMATS, Launch, refusal
from effv2_kernels.errors import UnavailableError
from effv2_kernels.gpu.launch import FeatureMap, Task, Tile
from effv2_kernels.gpu.memory import aligned
from effv2_kernels.gpu.plan import as_output

# The buffers of a call, by their numbers; outputs follow.
_IMAGES, _ARENA, _OUTPUTS = 1, 2, 3


class OneLaunch:
    """The launches of a network as tasks of a single one.

    launches: in order. image: what the first one reads. outputs: the maps that are returned. blocks: of
    threads, which take tasks; any number will do, and one for each multiprocessor is fastest.

    Every map has memory of its own, since tiles of several launches run at a time.
    """

    def __init__(
        self,
        launches: Sequence[Launch],
        image: FeatureMap,
        outputs: Sequence[FeatureMap],
        device: torch.device,
        blocks: int,
    ) -> None:
        self.image, self.outputs, self.blocks = image, list(outputs), blocks
        if len({id(m) for m in outputs}) < len(outputs) or _OUTPUTS + len(outputs) - 1 > _cuda.BUFFERS:
            raise UnavailableError(
                f"one launch returns at most {_cuda.BUFFERS - _OUTPUTS + 1} maps, each once, and not "
                f"{len(outputs)}"
            )
        self.tiles = [shape_of(launch) for launch in launches]
        self.format = FORMATS[launches[0].dtype]
        places = {id(image): _IMAGES << _cuda.OFFSET_BITS}
        for number, m in enumerate(self.outputs, start=_OUTPUTS):
            places[id(m)] = number << _cuda.OFFSET_BITS
        self.bytes = 0
        for m in _written(launches):
            if id(m) not in places:
                places[id(m)] = (_ARENA << _cuda.OFFSET_BITS) + self.bytes
                self.bytes = aligned(self.bytes + m.bytes)
        self.places = places
        steps = [launch.step(tile, places) for launch, tile in zip(launches, self.tiles, strict=True)]
        self._schedule = _cuda.Schedule(steps)
        self._plan = [
            torch.frombuffer(bytearray(data), dtype=torch.uint8).to(device)
            for data in (self._schedule.tasks, _cuda.bytes_of_steps(steps), self._schedule.parts)
        ]
        self._launches = list(launches)  # whose weights the steps point to
        self._listed = self._schedule.listed

    @property
    def control_bytes(self) -> int:
        """Of the memory, zero at first, in which the tasks of a launch are counted."""
        size: int = self._schedule.control_bytes
        return size

    @property
    def tasks(self) -> Iterator[Task]:
        for step, tile, made, needs in self._listed:
            yield Task(step, tile, _flags(made), tuple(_flags(need) for need in needs))

    def run(
        self, images: Tensor, arena: Tensor, control: Tensor, outputs: Sequence[Tensor] | None = None
    ) -> list[Tensor]:
        """See ``effv2_kernels.gpu.launch``."""
        made = outputs or [images.new_empty(m.elements, dtype=m.dtype) for m in self.outputs]
        tasks, steps, parts = (data.data_ptr() for data in self._plan)
        fields = {
            "tasks": len(self._listed), "largest": self._schedule.largest,
            "list": tasks, "steps": steps, "parts": parts, "control": control.data_ptr(),
        }  # fmt: skip
        stream = torch.cuda.current_stream(images.device).cuda_stream if images.is_cuda else 0
        buffers = [t.data_ptr() for t in (images, arena, *made)]
        try:
            _cuda.launch_network(self.format, fields, self.blocks, buffers, stream)
        except _cuda.CudaError as error:
            raise refusal("the one launch of the network", error) from error
        return [as_output(m, y) for m, y in zip(self.outputs, made, strict=True)]


def _flags(given: tuple[int, int]) -> range:
    first, count = given
    return range(first, first + count)


def _written(launches: Sequence[Launch]) -> Iterator[FeatureMap]:
    for launch in launches:
        yield from launch.written


def shape_of(launch: Launch) -> Tile:
    """Its ``tile_in_one``. Raises UnavailableError where it has none."""
    tile = launch.tile_in_one
    if tile is None:
        raise UnavailableError(f"{launch.name} has no shape that the one launch has")
    return tile
