"""Run a Network of folded blocks in plain PyTorch: the oracle of every backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from effv2_kernels import blocks
from effv2_kernels.reference.attention import attention
from effv2_kernels.reference.attention_downsample import attention_downsample
from effv2_kernels.reference.conv_downsample import conv_downsample
from effv2_kernels.reference.ffn import ffn
from effv2_kernels.reference.head import head
from effv2_kernels.reference.stem import stem

BLOCK_FUNCTIONS: dict[str, Callable[[Tensor, Any], Tensor]] = {
    blocks.Stem.kind: stem,
    blocks.FFN.kind: ffn,
    blocks.Attention.kind: attention,
    blocks.ConvDownsample.kind: conv_downsample,
    blocks.AttentionDownsample.kind: attention_downsample,
    blocks.Head.kind: head,
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
