"""A whole network in one launch, where its kernels can be joined: its plan, and the memory that it takes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from effv2_kernels.errors import UnavailableError
from effv2_kernels.gpu.alternatives import Alternative, key_of
from effv2_kernels.gpu.launch import FeatureMap, OneLaunch, Tile
from effv2_kernels.gpu.packing import Packed
from effv2_kernels.gpu.plan import Chosen, Plan, digest

# With more images, single launches have enough to do, and every map has memory of its own.
MOST_IMAGES = 8

# Streams whose control memory is kept; that of those used longest ago goes first.
_MAX_STREAMS = 16


def _joinable(number: int | None, alternatives: Sequence[Alternative], precision: str) -> Chosen:
    for alternative in alternatives:
        if alternative.joinable:
            return Chosen(alternative)
    what = "the scale and shift of an output" if number is None else f"block {number}"
    raise UnavailableError(f"{what} has no kernel that can be a part of one launch")


class OneLaunchPlan(Plan):
    """As a plan whose launches are one. Its blocks take the first alternatives that can be joined.

    It keeps memory, ``control_bytes`` for each stream that it was run on, in which the tasks of a launch are
    counted. Within the capture of a CUDA graph that memory is taken and cleared in the graph, to which it
    belongs then.

    Raises UnavailableError for more than MOST_IMAGES images, and where a block has no kernel to be joined.
    """

    # A graph of it would copy images and outputs besides.
    gains_by_graph = False

    def __init__(
        self,
        packed: Sequence[Packed],
        x: FeatureMap,
        outputs: Sequence[tuple[int, Packed | None]],
        precision: str,
        device: torch.device,
    ) -> None:
        if x.images > MOST_IMAGES:
            raise UnavailableError(f"it is for {MOST_IMAGES} images at most, not {x.images}")
        super().__init__(packed, x, outputs, precision, _joinable)
        tiles = [launch.tile_in_one for launch in self.launches]
        self.tiles: list[Tile] = [tile for tile in tiles if tile is not None]
        self._device = device
        self._controls: OrderedDict[int, Tensor] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def key(self) -> str:
        return f"one launch {digest(key_of(self.launches, self.tiles))}"

    @property
    def trusted(self) -> bool:
        return all(launch.trusted for launch in self.launches)

    @cached_property
    def joined(self) -> OneLaunch:
        """Made when it is first asked for, since most plans are only compared with others."""
        return type(self.launches[0]).join(self.launches, self.image, self.outputs, self._device)

    @property
    def bytes(self) -> int:
        return self.joined.bytes

    def run(self, images: Tensor, arena: Tensor | None = None) -> list[Tensor]:
        return self._run(images, arena, self._control())

    def for_graph(self, images: Tensor) -> Callable[[], list[Tensor]]:
        control = self.new_control()
        return lambda: self._run(images, None, control)

    def new_control(self) -> Tensor:
        """Memory to count tasks in, for one call at a time."""
        return torch.zeros(self.joined.control_bytes, dtype=torch.uint8, device=self._device)

    def _run(self, images: Tensor, arena: Tensor | None, control: Tensor) -> list[Tensor]:
        if arena is None:
            arena = images.new_empty(self.bytes, dtype=torch.uint8)
        return self.joined.run(images, arena, control)

    def _control(self) -> Tensor:
        """That of the current stream, on which calls come one behind the other.

        A stream is known by its handle: one from outside is not to be destroyed while its work runs.
        """
        stream = 0
        if self._device.type == "cuda":
            if torch.cuda.is_current_stream_capturing():
                return self.new_control()
            stream = torch.cuda.current_stream(self._device).cuda_stream
        with self._lock:
            if stream not in self._controls:
                if len(self._controls) >= _MAX_STREAMS:
                    # What is under way with it comes before whoever gets this memory next on its stream.
                    self._controls.popitem(last=False)
                self._controls[stream] = self.new_control()
            self._controls.move_to_end(stream)
            return self._controls[stream]
