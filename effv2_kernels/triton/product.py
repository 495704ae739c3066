"""The product that most launches are: y = f(left(x) w + bias) + residual, ``left`` made tile by tile.

Source "pointwise" takes x as it is, "depthwise" its 3x3 depthwise convolution (and GELU), "resized" the GELU
of x resized 2x. The left factor of the last two never exists in memory.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from effv2_kernels.triton.launch import FeatureMap, Launch, Tile, blocks_of, is_wide, round_up_to_power, tile
from effv2_kernels.triton.tiles import depthwise_sum, gelu, narrow, pixel_tile, pointwise_sum, resized_sum


@triton.jit(do_not_specialize=["pixels", "out_height", "out_width", "height", "width"])
def product(
    x,  # (.., height, width, K)
    dw,  # (9, K) float32, and (K,): of source "depthwise"
    dw_bias,
    w,  # (K, N)
    bias,  # (N,) float32
    residual,  # (pixels, N)
    y,  # out: (pixels, N)
    pixels,  # of y
    out_height,
    out_width,
    height,
    width,
    K: tl.constexpr,
    N: tl.constexpr,
    SOURCE: tl.constexpr,
    STRIDE: tl.constexpr,
    LEFT_GELU: tl.constexpr,  # GELU of the depthwise result
    GELU: tl.constexpr,  # of the product
    RESIDUAL: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    columns: tl.constexpr = (N + BN - 1) // BN
    program = tl.program_id(0)
    n = program % columns * BN + tl.arange(0, BN)
    pixel, image, row, column, valid = pixel_tile(
        program // columns * BM, pixels, out_height, out_width, BM, WIDE
    )
    acc = tl.zeros((BM, BN), tl.float32)
    if SOURCE == "pointwise":
        acc = pointwise_sum(acc, x, w, pixel, valid, n, K, N, BN, BK, PRECISION)
    elif SOURCE == "depthwise":
        acc = depthwise_sum(
            acc, x, dw, dw_bias, w, image, row, column, valid, n, height, width,
            K, N, STRIDE, LEFT_GELU, BN, BK, PRECISION,
        )  # fmt: skip
    else:
        acc = resized_sum(
            acc, x, w, image, row, column, valid, n, height, width, K, N, BN, BK, PRECISION
        )  # fmt: skip
    inside = n < N
    acc += tl.load(bias + n, mask=inside, other=0.0)[None, :]
    if GELU:
        acc = gelu(acc, y.dtype.element_ty == tl.float32)
    at = pixel[:, None] * N + n[None, :]
    ok = valid[:, None] & inside[None, :]
    if RESIDUAL:
        acc += tl.load(residual + at, mask=ok, other=0.0).to(tl.float32)
    tl.store(y + at, narrow(acc, y.dtype.element_ty), mask=ok)


def product_tiles(pixels: int, columns: int, dtype: torch.dtype, *, loads: int = 1) -> list[Tile]:
    """Tiles for a product of this many rows and columns; the first is the one to use unmeasured.

    Few rows: small tiles, so that as many multiprocessors as possible take part. Many rows: all columns in
    one tile where registers allow it, so that the left factor is made once.

    loads: of the left factor in each step. Every pipeline stage keeps all of them in shared memory, of which
    the smaller chips have 99 KB.
    """
    if dtype == torch.float32:  # products in float32 run on the ordinary units and need twice the registers
        return [
            tile(4, 2, BM=32, BN=min(64, round_up_to_power(columns)), BK=32),
            tile(4, 1, BM=16, BN=32, BK=32),
        ]
    # A left factor of several loads takes registers of its own.
    depth = 64 if loads == 1 else 32
    small = [
        tile(4, 3, BM=16, BN=32, BK=depth),
        tile(4, 3, BM=32, BN=32, BK=depth),
        tile(4, 2, BM=16, BN=64, BK=depth),
        tile(2, 3, BM=16, BN=32, BK=32),
    ]
    whole = min(256 if loads == 1 else 128, round_up_to_power(columns))
    deep, warps = (3, 4 if whole <= 128 else 8) if loads == 1 else (2, 4 if whole <= 64 else 8)
    large = [
        tile(warps, deep, BM=64, BN=whole, BK=32),
        tile(8, deep, BM=128, BN=min(whole, 128), BK=32),
        tile(4, deep, BM=64, BN=min(whole, 64), BK=32),
        tile(8, 2, BM=128, BN=whole, BK=32),
        tile(4, 2, BM=64, BN=min(whole, 128), BK=64),
    ]
    # 132 multiprocessors, two programs on each: fewer than that is too little for large tiles.
    few = blocks_of(pixels, 64) * blocks_of(columns, whole) < 264
    return [*small, *large] if few else [*large, *small]


def pointwise_product(
    x: FeatureMap,
    w: Tensor,
    bias: Tensor,
    precision: str,
    *,
    gelu: bool = False,
    residual: FeatureMap | None = None,
) -> Launch:
    """y = f(x w + bias) + residual. w: (in, out), bias: (out,) float32."""
    y = x.like(w.shape[1])
    return _launch("pointwise", x, w, bias, y, residual, precision, gelu=gelu)


def depthwise_product(
    x: FeatureMap,
    dw: Tensor,
    dw_bias: Tensor,
    w: Tensor,
    bias: Tensor,
    precision: str,
    *,
    stride: int,
    left_gelu: bool,
    residual: FeatureMap | None = None,
) -> Launch:
    """y = f(dw(x)) w + bias + residual. dw: (9, in) and dw_bias: (in,) float32."""
    y = x.like(w.shape[1], blocks_of(x.height, stride), blocks_of(x.width, stride))
    return _launch(
        "depthwise", x, w, bias, y, residual, precision,
        dw=dw, dw_bias=dw_bias, stride=stride, left_gelu=left_gelu,
    )  # fmt: skip


def resized_product(x: FeatureMap, w: Tensor, bias: Tensor, residual: FeatureMap, precision: str) -> Launch:
    """y = GELU(bilinear 2x of x, cropped to the residual) w + bias + residual."""
    y = residual.like(w.shape[1])
    return _launch("resized", x, w, bias, y, residual, precision)


def _launch(
    source: str,
    x: FeatureMap,
    w: Tensor,
    bias: Tensor,
    y: FeatureMap,
    residual: FeatureMap | None,
    precision: str,
    *,
    dw: Tensor | None = None,
    dw_bias: Tensor | None = None,
    stride: int = 1,
    gelu: bool = False,
    left_gelu: bool = False,
) -> Launch:
    arguments: dict[str, Any] = {
        "x": x,
        # What a source does not read is given something that exists.
        "dw": bias if dw is None else dw,
        "dw_bias": bias if dw_bias is None else dw_bias,
        "w": w,
        "bias": bias,
        "residual": x if residual is None else residual,
        "y": y,
        "pixels": y.pixels,
        "out_height": y.height,
        "out_width": y.width,
        "height": x.height,
        "width": x.width,
    }
    constants = {
        "K": x.channels,
        "N": y.channels,
        "SOURCE": source,
        "STRIDE": stride,
        "LEFT_GELU": left_gelu,
        "GELU": gelu,
        "RESIDUAL": residual is not None,
        "WIDE": is_wide(x, y),
        "PRECISION": precision,
    }
    loads = {"pointwise": 1, "depthwise": 9, "resized": 4}[source]
    return Launch(
        product,
        arguments,
        constants,
        lambda t: blocks_of(y.pixels, t.blocks["BM"]) * blocks_of(y.channels, t.blocks["BN"]),
        product_tiles(y.pixels, y.channels, x.dtype, loads=loads),
        y,
        y.pixels * x.channels * (y.channels + (9 if source == "depthwise" else 0)),
    )
