"""S0, scaled uniformly: every width by one factor and every depth by another."""

from __future__ import annotations

from timm.layers import make_divisible

from effv2_kernels.families.efficientformer_v2 import VARIANTS, Architecture


def scaled_s0(width: float, depth: float) -> Architecture:
    """S0 with widths in multiples of 8 as ``make_divisible`` rounds them, never by more than a tenth down.

    width, depth: the factors. Of blocks and of those with attention there is at least one; a stage has the
    first ratios of its first half and the last of its last, so that 3 stays in the middle.
    """
    s0 = VARIANTS["efficientformerv2_s0"]
    depths = tuple(max(1, round(depth * blocks)) for blocks in s0.depths)
    ratios = tuple(
        (*stage[: -(-count // 2)], *stage[len(stage) - count // 2 :])
        for stage, count in zip(s0.block_ratios(), depths, strict=True)
    )
    first, second = (max(1, round(depth * count)) for count in s0.late_attention())
    widths = tuple(make_divisible(width * channels, 8) for channels in s0.widths)
    return Architecture(widths, depths, ratios, (first, second)).canonical()
