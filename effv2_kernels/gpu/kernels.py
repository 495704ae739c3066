"""What backends for GPUs offer: kernels for blocks. Here alone they are told apart, by their names."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

import torch

from effv2_kernels.backends import require_kernels
from effv2_kernels.gpu.mix import Mix

if TYPE_CHECKING:
    from effv2_kernels.blocks import Block, Feature
    from effv2_kernels.gpu.packing import Packed

# Each needs its compiler, so it is imported for a model that is to run on it.
_MODULES = {"triton": "effv2_kernels.triton.kernels", "cuda": "effv2_kernels.cuda.kernels"}


class Kernels(Protocol):
    """The kernels of one backend: a module with these functions; or of several (``mix``)."""

    def refusal(self, block: Block) -> str | None:
        """What of a block there is no kernel for, None where there is one."""

    def pack(self, block: Block, dtype: torch.dtype, device: torch.device | str) -> Packed:
        """A block with its weights on ``device`` in the layouts of its kernels.

        Raises UnavailableError where there is no kernel for it.
        """

    def pack_feature(self, feature: Feature, device: torch.device | str) -> Packed:
        """The scale and shift of a feature map that a network returns."""


def pack_by(backend: str, block: Block, dtype: torch.dtype, device: torch.device | str) -> Packed:
    """``Kernels.pack`` of one backend.

    Who adds a block adds a module of its kind to the backend: the class FFN of effv2_kernels.triton.ffn packs
    a blocks.FFN.
    """
    require_kernels(backend, [block])
    packer = getattr(import_module(f"effv2_kernels.{backend}.{block.kind}"), type(block).__name__)
    packed: Packed = packer(block, dtype, device)
    return packed


def kernels_of(backend: str) -> Kernels:
    """Those of a backend for GPUs, by its name; "auto" has those of all, and its blocks choose."""
    if backend == "auto":
        return Mix({name: kernels_of(name) for name in _MODULES})
    return cast(Kernels, import_module(_MODULES[backend]))
