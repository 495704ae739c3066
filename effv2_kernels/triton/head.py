"""The head on a GPU: ``blocks.Head`` in two launches, ``mean`` over the positions and a ``product``."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from effv2_kernels import blocks
from effv2_kernels.gpu.launch import FeatureMap, blocks_of, is_wide, tile
from effv2_kernels.gpu.packing import Packed, matrix, vector
from effv2_kernels.triton.launch import Launch
from effv2_kernels.triton.product import pointwise_product
from effv2_kernels.triton.tiles import narrow


@triton.jit(do_not_specialize=["positions"])
def mean(
    x_ptr,  # (images, positions, CHANNELS)
    y_ptr,  # out: (images, CHANNELS)
    positions,
    CHANNELS: tl.constexpr,
    WIDE: tl.constexpr,
    BP: tl.constexpr,  # positions taken at once
    BC: tl.constexpr,
):
    columns: tl.constexpr = (CHANNELS + BC - 1) // BC
    program = tl.program_id(0)
    c = program % columns * BC + tl.arange(0, BC)
    image = program // columns
    if WIDE:
        image = image.to(tl.int64)
    total = tl.zeros((BC,), tl.float32)
    for first in range(0, positions, BP):
        p = first + tl.arange(0, BP)
        x_ptrs = x_ptr + (image * positions + p)[:, None] * CHANNELS + c[None, :]
        x_ok = (p < positions)[:, None] & (c < CHANNELS)[None, :]
        total += tl.sum(tl.load(x_ptrs, mask=x_ok, other=0.0).to(tl.float32), axis=0)
    dtype: tl.constexpr = y_ptr.dtype.element_ty
    tl.store(y_ptr + image * CHANNELS + c, narrow(total / positions, dtype), mask=c < CHANNELS)


class Head(Packed):
    """``blocks.Head`` with its weights in the kernel's layout."""

    def __init__(self, block: blocks.Head, dtype: torch.dtype, device: torch.device | str) -> None:
        self.weight, self.bias = matrix(block.linear.weight, dtype, device), vector(block.linear.bias, device)

    def plan(self, x: FeatureMap, precision: str) -> list[Launch]:
        y = x.like(x.channels, 1, 1)
        average = Launch(
            mean,
            arguments={"x_ptr": x, "y_ptr": y, "positions": x.height * x.width},
            constants={"CHANNELS": x.channels, "WIDE": is_wide(x)},
            programs=lambda t: x.images * blocks_of(x.channels, t.blocks["BC"]),
            tiles=[tile(1, 2, BP=8, BC=32), tile(2, 2, BP=16, BC=32), tile(4, 2, BP=16, BC=64)],
            output=y,
            macs=0,
        )
        return [average, pointwise_product(y, self.weight, self.bias, precision)]
