"""The kernels of several backends as those of one: block by block, whichever is chosen (``choice``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from effv2_kernels.errors import UnavailableError
from effv2_kernels.gpu.alternatives import Alternative
from effv2_kernels.gpu.launch import FeatureMap, Launch
from effv2_kernels.gpu.packing import Packed

if TYPE_CHECKING:
    from effv2_kernels.blocks import Block, Feature
    from effv2_kernels.gpu.kernels import Kernels


class MixedBlock(Packed):
    """A block as every backend packs it that has kernels for it.

    All copies are kept: each size of images chooses for itself, and the weights that they are made of are not
    this package's to keep.

    packed: by the name of the backend, the first of which runs it unmeasured. refused: why others cannot.
    """

    def __init__(self, packed: Mapping[str, Packed], refused: Mapping[str, str]) -> None:
        self._packed, self._refused = packed, refused
        self._first = next(iter(packed.values()))
        self.reads_any_layout = all(block.reads_any_layout for block in packed.values())

    def plan(self, x: FeatureMap, precision: str) -> Sequence[Launch]:
        return self._first.plan(x, precision)

    def alternatives(self, x: FeatureMap, precision: str) -> Sequence[Alternative]:
        found: list[Alternative] = []
        for backend, block in self._packed.items():
            try:
                found += block.alternatives(x, precision)
            except UnavailableError as error:
                found.append(Alternative(backend, "", (), str(error)))
        return [*found, *(Alternative(backend, "", (), why) for backend, why in self._refused.items())]

    @property
    def nbytes(self) -> int:
        return sum(block.nbytes for block in self._packed.values())


class Mix:
    """Of backends by their name; the first must have kernels for all blocks, the others need not."""

    def __init__(self, backends: Mapping[str, Kernels]) -> None:
        self._backends = backends
        self._first = next(iter(backends.values()))

    def refusal(self, block: Block) -> str | None:
        return self._first.refusal(block)

    def pack(self, block: Block, dtype: torch.dtype, device: torch.device | str) -> Packed:
        packed, refused = {}, {}
        for backend, kernels in self._backends.items():
            what = None if kernels is self._first else kernels.refusal(block)
            if what is None:
                packed[backend] = kernels.pack(block, dtype, device)
            else:
                refused[backend] = f"no kernel for {what}"
        return MixedBlock(packed, refused)

    def pack_feature(self, feature: Feature, device: torch.device | str) -> Packed:
        packed = {name: kernels.pack_feature(feature, device) for name, kernels in self._backends.items()}
        return MixedBlock(packed, {})
