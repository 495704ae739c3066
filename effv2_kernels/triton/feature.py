"""The BatchNorm that the official backbones put on a feature map they return: ``blocks.Feature``."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from effv2_kernels import blocks
from effv2_kernels.triton.launch import FeatureMap, Launch, blocks_of, is_wide, tile
from effv2_kernels.triton.packing import Packed, vector
from effv2_kernels.triton.tiles import narrow


@triton.jit(do_not_specialize=["elements"])
def scale_and_shift(
    x,  # (elements,), channels innermost
    scale,  # (CHANNELS,) float32
    shift,  # (CHANNELS,) float32
    y,  # out: (elements,)
    elements,
    CHANNELS: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    first = tl.program_id(0)
    if WIDE:
        first = first.to(tl.int64)
    at = first * BLOCK + tl.arange(0, BLOCK)
    valid = at < elements
    channel = at % CHANNELS
    value = tl.load(x + at, mask=valid, other=0.0).to(tl.float32)
    value = value * tl.load(scale + channel) + tl.load(shift + channel)
    tl.store(y + at, narrow(value, y.dtype.element_ty), mask=valid)


class Feature(Packed):
    """``blocks.Feature`` with a scale and a shift; y = scale * x + shift."""

    def __init__(self, feature: blocks.Feature, device: torch.device | str) -> None:
        assert feature.scale is not None
        assert feature.shift is not None
        self.scale, self.shift = vector(feature.scale, device), vector(feature.shift, device)

    def plan(self, x: FeatureMap, precision: str) -> list[Launch]:
        y = x.like(x.channels)
        launch = Launch(
            scale_and_shift,
            {"x": x, "scale": self.scale, "shift": self.shift, "y": y, "elements": x.elements},
            {"CHANNELS": x.channels, "WIDE": is_wide(x)},
            lambda t: blocks_of(x.elements, t.blocks["BLOCK"]),
            [tile(4, 1, BLOCK=1024)],
            y,
            0,
        )
        return [launch]
