"""A network as a list of launches for one shape of its input, with all memory laid out, and how to run it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from effv2_kernels.gpu.alternatives import Alternative, key_of
from effv2_kernels.gpu.launch import FeatureMap
from effv2_kernels.gpu.memory import lay_out
from effv2_kernels.gpu.packing import Packed


@dataclass(frozen=True, eq=False)
class Chosen:
    """The one of a block's alternatives that a plan takes, and why that."""

    alternative: Alternative
    why: str = ""


class Choose(Protocol):
    """Which alternative a plan takes."""

    def __call__(self, number: int | None, alternatives: Sequence[Alternative], precision: str) -> Chosen:
        """number: of the block, None for an output's scale and shift. Raises UnavailableError for none."""


def first(number: int | None, alternatives: Sequence[Alternative], precision: str) -> Chosen:
    """That which is there for all others."""
    return Chosen(alternatives[0])


def plan_blocks(
    packed: Sequence[Packed], x: FeatureMap, precision: str, choose: Choose = first
) -> list[Chosen]:
    """What runs each block, in order, for the input x of the first one."""
    planned = []
    for number, block in enumerate(packed):
        planned.append(choose(number, block.alternatives(x, precision), precision))
        x = planned[-1].alternative.launches[-1].output
    return planned


class Plan:
    """The launches of a network for images of one shape and layout. It holds no memory for activations.

    packed: the blocks. x: what the images are. outputs: indices of the blocks whose outputs are returned,
    each with the scale and shift to put on it, or None. choose: among the alternatives of each; without it,
    the first.

    chosen: what runs each block; blocks: its launches; launches: all of them, with those of scales and
    shifts; tiles: of each launch, to begin with the first of its candidates.

    Raises ResolutionError where an attention bias does not fit, and UnavailableError for maps that no kernel
    takes.
    """

    # Whether to replay it as a CUDA graph is faster than to run it.
    gains_by_graph = True

    def __init__(
        self,
        packed: Sequence[Packed],
        x: FeatureMap,
        outputs: Sequence[tuple[int, Packed | None]],
        precision: str,
        choose: Choose = first,
    ) -> None:
        self.image = x
        self.chosen = plan_blocks(packed, x, precision, choose)
        self.blocks = [chosen.alternative.launches for chosen in self.chosen]
        self.launches = [launch for launches in self.blocks for launch in launches]
        self.outputs = []
        for i, feature in outputs:
            made = self.blocks[i][-1].output
            if feature is not None:
                of_output = choose(None, feature.alternatives(made, precision), precision)
                self.launches += of_output.alternative.launches
                made = self.launches[-1].output
            self.outputs.append(made)
        self.tiles = [launch.tiles[0] for launch in self.launches]
        self._layout = lay_out(self.launches, outside=self.outputs)

    @property
    def key(self) -> str:
        """What its time depends on, short."""
        return f"{len(self.launches)} launches {digest(key_of(self.launches, self.tiles))}"

    @property
    def bytes(self) -> int:
        """Of all activations but the outputs, while a run is under way."""
        return self._layout.bytes

    def run(self, images: Tensor, arena: Tensor | None = None) -> list[Tensor]:
        """Launch everything on the current stream; nothing waits for the GPU.

        images: as planned. arena: (``bytes``,) uint8 on the same device for the activations; None takes it
        from PyTorch, which hands it out again when its work on this stream is done, so that runs on several
        streams and from several threads do not meet. Returns the outputs (N, C, H, W) in channels_last.
        """
        if arena is None:
            arena = images.new_empty(self.bytes, dtype=torch.uint8)
        memory = {self.image: images}
        for m, start in self._layout.offsets.items():
            memory[m] = arena[start : start + m.bytes].view(m.dtype)
        for m in self.outputs:
            memory[m] = images.new_empty(m.elements, dtype=m.dtype)
        for launch, tile in zip(self.launches, self.tiles, strict=True):
            launch.run(tile, memory)
        return [as_output(m, memory[m]) for m in self.outputs]

    def for_graph(self, images: Tensor) -> Callable[[], list[Tensor]]:
        """``run`` for these images, to be called while a CUDA graph is captured, which keeps the outputs."""
        return partial(self.run, images)


def as_output(m: FeatureMap, values: Tensor) -> Tensor:
    """The values of a map as (N, C, H, W) in channels_last."""
    return values.view(m.images, m.height, m.width, m.channels).permute(0, 3, 1, 2)


def digest(text: str) -> str:
    """For keys that would be too long to keep."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]
