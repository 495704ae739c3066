"""The product that most launches are: y = f(left(x) w + bias) + residual, ``left`` made tile by tile.

Source "pointwise" takes x as it is, "depthwise" f of its 3x3 depthwise convolution, which never exists in
memory. What is cheaper to make once than for each tile, measured on an H100, has a launch of its own: the
2x resize of an attention (0.5 to 1 times as long) and its strided convolution.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from effv2_kernels.gpu.launch import FeatureMap, blocks_of, is_wide
from effv2_kernels.triton.launch import Launch
from effv2_kernels.triton.ranking import product_programs, product_tiles
from effv2_kernels.triton.tiles import activated, depthwise_sums, load_row, pixel_tile, pointwise_sum


@triton.jit(do_not_specialize=["images", "height", "width"])
def product(
    x_ptr,  # (images, height, width, K)
    dw_ptr,  # (9, K), see depthwise_tiles; and (K,) float32: of source "depthwise"
    dw_bias_ptr,
    w_ptr,  # (K, N)
    bias_ptr,  # (N,) float32
    residual_ptr,  # (pixels of y, N)
    y_ptr,  # out: (images, y_height, y_width, N)
    images,
    height,  # of x
    width,
    K: tl.constexpr,
    N: tl.constexpr,
    SOURCE: tl.constexpr,
    STRIDE: tl.constexpr,  # of the depthwise convolution; 1 for "pointwise"
    ACTIVATION: tl.constexpr,  # of the product, or of the depthwise convolution
    RESIDUAL: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    ROWS: tl.constexpr,  # of y that each of BM places stands for, below each other; 1 but for "depthwise"
    COLS: tl.constexpr,  # blocks of BN columns that one program makes; 1 for "pointwise"
):
    dtype: tl.constexpr = y_ptr.dtype.element_ty
    columns: tl.constexpr = (N + BN * COLS - 1) // (BN * COLS)
    program = tl.program_id(0)
    n = program % columns * (BN * COLS) + tl.arange(0, BN)
    y_height, y_width = (height + STRIDE - 1) // STRIDE, (width + STRIDE - 1) // STRIDE
    groups = tl.cdiv(y_height, ROWS)
    place = pixel_tile(program // columns * BM, images * groups * y_width, groups, y_width, BM, WIDE)
    pixel, image, row, column, ok = place
    if SOURCE == "depthwise":
        row = row * ROWS
        pixel = (image * y_height + row) * y_width + column
    # A sum of many registers leaves none to load a residual after it, and several sums leave none before.
    EARLY: tl.constexpr = RESIDUAL and ROWS == 1
    AFTER: tl.constexpr = ACTIVATION if SOURCE == "pointwise" else "none"
    accs = ()
    for _ in tl.static_range(ROWS):
        for j in tl.static_range(COLS):
            nj = n + j * BN
            acc = tl.zeros((BM, BN), tl.float32) + load_row(bias_ptr, nj, N)
            if EARLY:
                residual_ptrs = residual_ptr + pixel[:, None] * N + nj[None, :]
                y_ok = ok[:, None] & (nj < N)[None, :]
                acc += tl.load(residual_ptrs, mask=y_ok, other=0.0).to(tl.float32)
            accs = accs + (acc,)
    if SOURCE == "depthwise":
        accs = depthwise_sums(
            accs, (x_ptr, height, width), (dw_ptr, dw_bias_ptr), (w_ptr, K, N, BK, BN),
            (pixel, image, row, column, ok), n, ACTIVATION, STRIDE, ROWS, COLS, PRECISION,
        )  # fmt: skip
    else:
        accs = (pointwise_sum(acc, x_ptr, (w_ptr, K, N, BK, BN), place, n, PRECISION),)
    for o in tl.static_range(ROWS):
        for j in tl.static_range(COLS):
            nj = n + j * BN
            y_at = (pixel + o * y_width)[:, None] * N + nj[None, :]
            y_ok = (ok & (row + o < y_height))[:, None] & (nj < N)[None, :]
            out = accs[o * COLS + j]
            if RESIDUAL and not EARLY:
                out += tl.load(residual_ptr + y_at, mask=y_ok, other=0.0).to(tl.float32)
            tl.store(y_ptr + y_at, activated(out, AFTER, dtype), mask=y_ok)


def pointwise_product(
    x: FeatureMap,
    w: Tensor,
    bias: Tensor,
    precision: str,
    *,
    activation: str = "none",
    residual: FeatureMap | None = None,
) -> Launch:
    """y = f(x w + bias + residual), or without the last. w: (in, out), bias: (out,) float32."""
    y = x.like(w.shape[1])
    return _launch("pointwise", x, w, bias, y, residual, precision, activation)


def depthwise_product(
    x: FeatureMap,
    dw: Tensor,
    dw_bias: Tensor,
    w: Tensor,
    bias: Tensor,
    precision: str,
    *,
    activation: str,
    stride: int = 1,
    residual: FeatureMap | None = None,
) -> Launch:
    """y = f(dw(x)) w + bias + residual. dw: (9, in), see ``depthwise_tiles``; dw_bias: (in,) float32."""
    y = x.like(w.shape[1], blocks_of(x.height, stride), blocks_of(x.width, stride))
    return _launch("depthwise", x, w, bias, y, residual, precision, activation, stride, dw, dw_bias)


def _launch(
    source: str,
    x: FeatureMap,
    w: Tensor,
    bias: Tensor,
    y: FeatureMap,
    residual: FeatureMap | None,
    precision: str,
    activation: str,
    stride: int = 1,
    dw: Tensor | None = None,
    dw_bias: Tensor | None = None,
) -> Launch:
    arguments: dict[str, Any] = {
        "x_ptr": x,
        # What a source does not read is given something that exists.
        "dw_ptr": bias if dw is None else dw,
        "dw_bias_ptr": bias if dw_bias is None else dw_bias,
        "w_ptr": w,
        "bias_ptr": bias,
        "residual_ptr": bias if residual is None else residual,
        "y_ptr": y,
        "images": y.images,
        "height": x.height,
        "width": x.width,
    }
    constants = {
        "K": x.channels,
        "N": y.channels,
        "SOURCE": source,
        "STRIDE": stride,
        "ACTIVATION": activation,
        "RESIDUAL": residual is not None,
        "WIDE": is_wide(x, y),
        "PRECISION": precision,
    }
    return Launch(
        product,
        arguments=arguments,
        constants=constants,
        programs=lambda t: product_programs(t, y),
        tiles=product_tiles(source, y, x.channels),
        output=y,
        macs=y.pixels * x.channels * (y.channels + (9 if source == "depthwise" else 0)),
    )
