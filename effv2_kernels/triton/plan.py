"""A network as a list of launches for one shape of its input, with all memory laid out, and how to run it."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

import torch
from torch import Tensor

from effv2_kernels import blocks, support
from effv2_kernels.backends import require_kernels
from effv2_kernels.support import Limits
from effv2_kernels.triton.feature import Feature
from effv2_kernels.triton.launch import FeatureMap, Launch, Tile
from effv2_kernels.triton.memory import lay_out
from effv2_kernels.triton.packing import Packed

# What the kernels of each kind of block can run; a kind that is not here has none.
LIMITS = {
    "stem": Limits(),
    "ffn": Limits({"kernel": (3,)}, absent=("fc1",)),
    "attention": Limits(),
    "conv": Limits({"kernel": (1, 3)}),
    "attention_downsample": Limits(),
    "head": Limits(),
}


def refusal(block: blocks.Block) -> str | None:
    """What of a block there is no kernel for, None where there is one."""
    return support.refusal(LIMITS, block)


def pack(block: blocks.Block, dtype: torch.dtype, device: torch.device | str) -> Packed:
    """A block with its weights on ``device`` in the layouts of its kernels.

    Raises UnavailableError where there is no kernel for it.
    """
    require_kernels("triton", [block])
    # One stem per block: the class FFN of effv2_kernels.triton.ffn packs a blocks.FFN.
    packer = getattr(import_module(f"effv2_kernels.triton.{block.kind}"), type(block).__name__)
    packed: Packed = packer(block, dtype, device)
    return packed


def plan_blocks(packed: Sequence[Packed], x: FeatureMap, precision: str) -> list[list[Launch]]:
    """The launches of each block, in order, for the input x of the first one."""
    planned = []
    for block in packed:
        launches = block.plan(x, precision)
        planned.append(launches)
        x = launches[-1].output
    return planned


def execute(launch: Launch, chosen: Tile, memory: dict[FeatureMap, Tensor]) -> None:
    """Run one launch on the current stream. memory: the tensor of every buffer."""
    values = {
        name: memory[value] if isinstance(value, FeatureMap) else value
        for name, value in launch.arguments.items()
    }
    constants, options = launch.settings(chosen)
    launch.kernel[(launch.programs(chosen),)](**values, **constants, **options)


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
        outputs: Sequence[tuple[int, Feature | None]],
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
            execute(launch, tile, memory)
        return [
            memory[m].view(m.images, m.height, m.width, m.channels).permute(0, 3, 1, 2) for m in self.outputs
        ]
