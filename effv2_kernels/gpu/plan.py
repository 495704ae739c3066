"""A network as a list of launches for one shape of its input, with all memory laid out, and how to run it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from effv2_kernels.gpu.launch import FeatureMap, Launch
from effv2_kernels.gpu.memory import lay_out
from effv2_kernels.gpu.packing import Packed


def plan_blocks(packed: Sequence[Packed], x: FeatureMap, precision: str) -> list[Sequence[Launch]]:
    """The launches of each block, in order, for the input x of the first one."""
    planned: list[Sequence[Launch]] = []
    for block in packed:
        launches = block.plan(x, precision)
        planned.append(launches)
        x = launches[-1].output
    return planned


class Plan:
    """The launches of a network for images of one shape and layout. It holds no memory for activations.

    packed: the blocks. x: what the images are. outputs: indices of the blocks whose outputs are returned,
    each with the scale and shift to put on it, or None.

    blocks: the launches of each block; launches: all of them, with those of scales and shifts; tiles: of
    each launch, to begin with the first of its candidates.

    Raises ResolutionError where an attention bias does not fit.
    """

    def __init__(
        self,
        packed: Sequence[Packed],
        x: FeatureMap,
        outputs: Sequence[tuple[int, Packed | None]],
        precision: str,
    ) -> None:
        self.image = x
        self.blocks = plan_blocks(packed, x, precision)
        self.launches = [launch for launches in self.blocks for launch in launches]
        self.outputs = []
        for i, feature in outputs:
            made = self.blocks[i][-1].output
            if feature is not None:
                self.launches += feature.plan(made, precision)
                made = self.launches[-1].output
            self.outputs.append(made)
        self.tiles = [launch.tiles[0] for launch in self.launches]
        self._layout = lay_out(self.launches, outside=self.outputs)

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
        return [
            memory[m].view(m.images, m.height, m.width, m.channels).permute(0, 3, 1, 2) for m in self.outputs
        ]
