"""What the CUDA backend offers: see ``effv2_kernels.gpu.kernels``."""

from __future__ import annotations

import torch

from effv2_kernels import blocks, support
from effv2_kernels.cuda.conv import of_image
from effv2_kernels.cuda.feature import Feature
from effv2_kernels.gpu.kernels import pack_by
from effv2_kernels.gpu.packing import Packed
from effv2_kernels.support import Limits

# Sixteen bytes of a pixel at a time.
_EIGHTS = range(8, 1 << 20, 8)
_MAPS = {"in": _EIGHTS, "out": _EIGHTS}

# What the kernels of each kind of block can run; a kind that is not here has none. The sizes of heads are
# those that csrc/cuda/blocks/attention.h and attention_downsample.h are compiled for.
LIMITS = {
    "stem": Limits({"in": (3,), "out": _EIGHTS}),
    "ffn": Limits({**_MAPS, "hidden": _EIGHTS, "kernel": (3,)}, absent=("fc1",)),
    "attention": Limits({**_MAPS, "heads": (8,), "key_dim": (32,), "value_dim": (128,)}),
    "conv": Limits({**_MAPS, "kernel": (1, 3)}),
    "attention_downsample": Limits({**_MAPS, "heads": (8,), "key_dim": (16,), "value_dim": (64,)}),
    "head": Limits({"in": _EIGHTS}),
}


def refusal(block: blocks.Block) -> str | None:
    """What of a block there is no kernel for, None where there is one."""
    if isinstance(block, blocks.Conv) and of_image(block):
        return support.refusal({block.kind: Limits({"out": _EIGHTS})}, block)
    return support.refusal(LIMITS, block)


def pack(block: blocks.Block, dtype: torch.dtype, device: torch.device | str) -> Packed:
    """A block with its weights on ``device`` in the layouts of its kernels.

    Raises UnavailableError where there is no kernel for it.
    """
    return pack_by("cuda", block, dtype, device)


def pack_feature(feature: blocks.Feature, device: torch.device | str) -> Packed:
    """The scale and shift of a feature map that a network returns."""
    return Feature(feature, device)
