"""Run a Network of folded blocks in plain PyTorch: the oracle of every backend."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from torch import Tensor

from effv2_kernels import blocks

# One stem per block: ``ffn`` is the function of that name in ``effv2_kernels.reference.ffn``.
BLOCK_FUNCTIONS: dict[str, Callable[[Tensor, Any], Tensor]] = {
    kind: getattr(import_module(f"effv2_kernels.reference.{kind}"), kind) for kind in blocks.BLOCK_TYPES
}


def run_block(block: blocks.Block, x: Tensor) -> Tensor:
    """The output of one block for x: (N, C, H, W); in x's dtype."""
    return BLOCK_FUNCTIONS[block.kind](x, block)


def run(network: blocks.Network, x: Tensor) -> Tensor | list[Tensor]:
    """The logits (N, classes), or the list of feature maps, for images x: (N, C, H, W); in x's dtype."""
    outputs: list[Tensor] = []
    for block in network.blocks:
        x = run_block(block, x)
        outputs.append(x)
    if isinstance(network.blocks[-1], blocks.Head):
        return x
    features = []
    for feature in network.features:
        y = outputs[feature.block]
        if feature.scale is not None and feature.shift is not None:
            y = y * feature.scale.to(y)[:, None, None] + feature.shift.to(y)[:, None, None]
        features.append(y)
    return features
