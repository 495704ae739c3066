"""The BatchNorm that the official backbones put on a feature map they return: ``blocks.Feature``."""

from __future__ import annotations

import triton
import triton.language as tl

from effv2_kernels.gpu.feature import PackedFeature
from effv2_kernels.gpu.launch import FeatureMap, blocks_of, is_wide, tile
from effv2_kernels.triton.launch import Launch
from effv2_kernels.triton.tiles import narrow


@triton.jit(do_not_specialize=["elements"])
def scale_and_shift(
    x_ptr,  # (elements,), channels innermost
    scale_ptr,  # (CHANNELS,) float32
    shift_ptr,  # (CHANNELS,) float32
    y_ptr,  # out: (elements,)
    elements,
    CHANNELS: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    first = tl.program_id(0)
    if WIDE:
        first = first.to(tl.int64)
    x_at = first * BLOCK + tl.arange(0, BLOCK)
    x_ok = x_at < elements
    c = x_at % CHANNELS
    tile = tl.load(x_ptr + x_at, mask=x_ok, other=0.0).to(tl.float32)
    tile = tile * tl.load(scale_ptr + c) + tl.load(shift_ptr + c)
    tl.store(y_ptr + x_at, narrow(tile, y_ptr.dtype.element_ty), mask=x_ok)


class Feature(PackedFeature):
    """``blocks.Feature`` with a scale and a shift; y = scale * x + shift."""

    def plan(self, x: FeatureMap, precision: str) -> list[Launch]:
        y = x.like(x.channels)
        launch = Launch(
            scale_and_shift,
            arguments={
                "x_ptr": x, "scale_ptr": self.scale, "shift_ptr": self.shift, "y_ptr": y,
                "elements": x.elements,
            },
            constants={"CHANNELS": x.channels, "WIDE": is_wide(x)},
            programs=lambda t: blocks_of(x.elements, t.blocks["BLOCK"]),
            tiles=[tile(4, 1, BLOCK=1024)],
            output=y,
            macs=0,
        )  # fmt: skip
        return [launch]
