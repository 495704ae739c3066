"""The shapes of the blocks of a network, in order of execution."""

from __future__ import annotations

import math
from functools import partial

from effv2_kernels.families.efficientformer_v2.architecture import Architecture
from effv2_kernels.shapes import BlockShape, attention, attention_downsample, conv, ffn, head, stem


def network_shapes(
    architecture: Architecture,
    image: tuple[int, int] = (224, 224),
    *,
    classes: int = 1000,
    in_channels: int = 3,
) -> list[BlockShape]:
    """Every block of a network in order of execution, repeated as often as it occurs."""
    made = [stem(architecture.widths[0], *image, in_channels=in_channels)]
    height, width = math.ceil(image[0] / 4), math.ceil(image[1] / 4)
    channels = architecture.widths[0]
    for stage, ratios in enumerate(architecture.block_ratios()):
        if stage > 0:
            step = attention_downsample if stage == 3 else partial(conv, stride=2)
            made.append(step(channels, architecture.widths[stage], height, width))
            channels = architecture.widths[stage]
            height, width = math.ceil(height / 2), math.ceil(width / 2)
        attending = architecture.late_attention()[stage - 2] if stage >= 2 else 0
        for i, ratio in enumerate(ratios):
            if i >= len(ratios) - attending:
                made.append(attention(channels, height, width, stride=2 if stage == 2 else 1))
            made.append(ffn(channels, int(channels * ratio), height, width))
    return [*made, head(channels, classes, height, width)]
