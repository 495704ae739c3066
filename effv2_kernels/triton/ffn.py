"""The bottleneck on a GPU: ``blocks.FFN`` in two launches, cut in one of two ways.

By pixels, for many of them:

1. ``product``: f(fc1(x)). Not without fc1.
2. ``product``: f of the depthwise convolution is made tile by tile in registers and fed straight to fc2, plus
   x if there is a residual.

By channels, for small maps and few images, where the second of these would be a handful of programs that go
through all hidden channels one step after another, and for wide blocks:

1. ``hidden``: f(fc1(x)), and f of the depthwise convolution, of a few channels of an image's rows. Without
   fc1 it is ``depthwise``.
2. ``product``: fc2 of that, plus x if there is a residual.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from effv2_kernels import blocks
from effv2_kernels.gpu.launch import FeatureMap, blocks_of, is_wide
from effv2_kernels.gpu.packing import Packed, matrix, taps, vector
from effv2_kernels.triton.depthwise import strided_depthwise
from effv2_kernels.triton.launch import Launch
from effv2_kernels.triton.product import depthwise_product, pointwise_product
from effv2_kernels.triton.ranking import hidden_programs, hidden_tiles
from effv2_kernels.triton.tiles import (
    activated,
    depthwise_tiles,
    ok_of,
    pixel_tile,
    pointwise_sum,
    ptrs_of,
)

# Maps of so many pixels at most are cut by channels whatever the batch, and others up to this number of
# pixels in all images. Measured on an H100, all FFNs of S0 and L: by channels they take 0.46 to 0.84 times as
# long at 32 images of 14 x 14 or 8 of 28 x 28 (6272 pixels), 0.95 to 1.4 times at four times as many, and of
# 7 x 7 0.6 to 0.8 times at 256 images.
_SMALL_MAP = 64
_FEW_PIXELS = 8192

# Channels of the output that one program can make; with more of them, the depthwise convolution by pixels
# would be made more than once.
_ONE_TILE = 192


@triton.jit(do_not_specialize=["height", "width"])
def hidden(
    x_ptr,  # (images, height, width, K)
    w_ptr,  # (K, N)
    bias_ptr,  # (N,) float32
    dw_ptr,  # (9, N), see depthwise_tiles
    dw_bias_ptr,  # (N,) float32
    wide_ptr,  # out: (images, height, width, N), f(fc1(x))
    y_ptr,  # out: (images, y_height, y_width, N), f(dw(wide))
    height,  # of x
    width,
    K: tl.constexpr,
    N: tl.constexpr,
    STRIDE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    BAND: tl.constexpr,  # rows of y that one program makes
):
    """BN channels of BAND rows. They go through memory, where a pixel finds its neighbours.

    The row above and the one below are made as well, by two programs each, with the same bits.
    """
    dtype: tl.constexpr = y_ptr.dtype.element_ty
    columns: tl.constexpr = (N + BN - 1) // BN
    program = tl.program_id(0)
    n = program % columns * BN + tl.arange(0, BN)
    n_ok = n < N
    y_height, y_width = (height + STRIDE - 1) // STRIDE, (width + STRIDE - 1) // STRIDE
    bands = tl.cdiv(y_height, BAND)
    top = program // columns % bands * BAND
    image = program // (columns * bands)
    if WIDE:
        image = image.to(tl.int64)
        width, y_width = width.to(tl.int64), y_width.to(tl.int64)  # and with them the pixels of an image
    x_ptr += image * (height * width) * K
    wide_ptr += image * (height * width) * N
    y_ptr += image * (y_height * y_width) * N
    bias_tile = tl.load(bias_ptr + n, mask=n_ok, other=0.0)[None, :]
    end = tl.minimum(top * STRIDE + (BAND * STRIDE - STRIDE + 2), height) * width
    for first in range(tl.maximum(top * STRIDE - 1, 0) * width, end, BM):
        place = pixel_tile(first, end, height, width, BM, False)
        acc = tl.zeros((BM, BN), tl.float32)
        acc = pointwise_sum(acc, x_ptr, (w_ptr, K, N, BK, BN), place, n, PRECISION)
        wide_ptrs = ptrs_of(wide_ptr, place, n, N)
        tl.store(wide_ptrs, activated(acc + bias_tile, ACTIVATION, dtype), mask=ok_of(place, n, N))
    tl.debug_barrier()  # what the threads of this program wrote is there for all of them
    wide, filters = (wide_ptr, height, width), (dw_ptr, dw_bias_ptr)
    end = tl.minimum(top + BAND, y_height) * y_width
    for first in range(top * y_width, end, BM):
        place = pixel_tile(first, end, y_height, y_width, BM, False)
        (out,) = depthwise_tiles(wide, filters, place, n, N, N, STRIDE, 1, N % BN != 0)
        y_ptrs = ptrs_of(y_ptr, place, n, N)
        tl.store(y_ptrs, activated(out, ACTIVATION, dtype), mask=ok_of(place, n, N))


class FFN(Packed):
    """``blocks.FFN`` with its weights in the kernels' layouts."""

    def __init__(self, block: blocks.FFN, dtype: torch.dtype, device: torch.device | str) -> None:
        self.activation, self.stride, self.residual = block.activation, block.stride, block.residual
        self.fc1: Tensor | None = None
        self.fc1_bias: Tensor | None = None
        if block.fc1 is not None:
            self.fc1, self.fc1_bias = matrix(block.fc1.weight, dtype, device), vector(block.fc1.bias, device)
        self.dw, self.dw_bias = taps(block.dw.weight, dtype, device), vector(block.dw.bias, device)
        self.fc2, self.fc2_bias = matrix(block.fc2.weight, dtype, device), vector(block.fc2.bias, device)

    def plan(self, x: FeatureMap, precision: str) -> list[Launch]:
        # Of the output, which is what the programs of the second launch share.
        of_one = blocks_of(x.height, self.stride) * blocks_of(x.width, self.stride)
        small = of_one <= _SMALL_MAP or x.images * of_one <= _FEW_PIXELS
        if small or self.fc2.shape[1] > _ONE_TILE:
            return self.by_channels(x, precision)
        return self.by_pixels(x, precision)

    def by_pixels(self, x: FeatureMap, precision: str) -> list[Launch]:
        launches = []
        wide = x
        if self.fc1 is not None and self.fc1_bias is not None:
            launches.append(
                pointwise_product(x, self.fc1, self.fc1_bias, precision, activation=self.activation)
            )
            wide = launches[-1].output
        narrow = depthwise_product(
            wide, self.dw, self.dw_bias, self.fc2, self.fc2_bias, precision,
            activation=self.activation, stride=self.stride, residual=x if self.residual else None,
        )  # fmt: skip
        return [*launches, narrow]

    def by_channels(self, x: FeatureMap, precision: str) -> list[Launch]:
        if self.fc1 is None or self.fc1_bias is None:
            widen = strided_depthwise(
                x, self.dw, self.dw_bias, activation=self.activation, stride=self.stride
            )
        else:
            widen = self._hidden(x, self.fc1, self.fc1_bias, precision)
        residual = x if self.residual else None
        narrow = pointwise_product(widen.output, self.fc2, self.fc2_bias, precision, residual=residual)
        return [widen, narrow]

    def _hidden(self, x: FeatureMap, fc1: Tensor, fc1_bias: Tensor, precision: str) -> Launch:
        wide = x.like(fc1.shape[1])
        y = x.like(wide.channels, blocks_of(x.height, self.stride), blocks_of(x.width, self.stride))
        return Launch(
            hidden,
            arguments={
                "x_ptr": x, "w_ptr": fc1, "bias_ptr": fc1_bias,
                "dw_ptr": self.dw, "dw_bias_ptr": self.dw_bias, "wide_ptr": wide, "y_ptr": y,
                "height": x.height, "width": x.width,
            },
            constants={
                "K": x.channels, "N": y.channels, "STRIDE": self.stride, "ACTIVATION": self.activation,
                "WIDE": is_wide(x, wide), "PRECISION": precision,
            },
            programs=lambda t: hidden_programs(t, y),
            tiles=hidden_tiles(x, y, self.stride),
            output=y,
            macs=wide.elements * x.channels + 9 * y.elements,
            scratch=wide,
        )  # fmt: skip
