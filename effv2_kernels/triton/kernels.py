"""What Triton's kernels run of the blocks: see ``effv2_kernels.gpu.kernels``."""

from __future__ import annotations

import torch

from effv2_kernels import blocks, support
from effv2_kernels.gpu.kernels import pack_by
from effv2_kernels.gpu.packing import Packed
from effv2_kernels.support import Limits
from effv2_kernels.triton.feature import Feature

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
    return pack_by("triton", block, dtype, device)


def pack_feature(feature: blocks.Feature, device: torch.device | str) -> Packed:
    """The scale and shift of a feature map that a network returns."""
    return Feature(feature, device)
