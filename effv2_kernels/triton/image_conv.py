"""The convolution of an image: 3x3 with stride 2 over few channels, which may have any strides.

The first one of a stem, and of a network that begins with a convolution.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from effv2_kernels.gpu.launch import FeatureMap, Tile, blocks_of, is_wide, round_up_to_power, tile
from effv2_kernels.triton.launch import Launch
from effv2_kernels.triton.ranking import product_programs
from effv2_kernels.triton.tiles import activated, load_row, ok_of, output_tile, ptrs_of


@triton.jit(
    do_not_specialize=[
        "pixels", "out_height", "out_width", "height", "width",
        "image_stride", "channel_stride", "row_stride", "column_stride",
    ]
)  # fmt: skip
def image_conv(
    x_ptr,  # (images, IN, height, width) with the strides given
    w_ptr,  # (IN * 9, OUT): channels outermost; float16 where x is, else float32
    bias_ptr,  # (OUT,) float32
    y_ptr,  # out: (pixels, OUT)
    pixels,
    out_height,
    out_width,
    height,
    width,
    image_stride,
    channel_stride,
    row_stride,
    column_stride,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    ACTIVATION: tl.constexpr,
    WIDE: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """On ordinary units: to gather patches for the tensor cores, value by value, would take longer."""
    dtype: tl.constexpr = w_ptr.dtype.element_ty
    n, place = output_tile(pixels, out_height, out_width, OUT, BM, BN, WIDE)
    _, image, row, column, ok = place
    if WIDE:
        channel_stride, row_stride = channel_stride.to(tl.int64), row_stride.to(tl.int64)
        column_stride = column_stride.to(tl.int64)
    top, left = row * 2 - 1, column * 2 - 1
    patch_ptrs = x_ptr + image * image_stride + top * row_stride + left * column_stride
    acc = tl.zeros((BM, BN), tl.float32) + load_row(bias_ptr, n, OUT)
    for c in range(IN):
        part = tl.zeros((BM, BN), dtype)  # nine terms of float16 in float16, see depthwise_tiles
        for r in tl.static_range(3):
            row_ok = ok & (top + r >= 0) & (top + r < height)
            for s in tl.static_range(3):
                x_ok = row_ok & (left + s >= 0) & (left + s < width)
                x_ptrs = patch_ptrs + c * channel_stride + r * row_stride + s * column_stride
                x_tile = tl.load(x_ptrs, mask=x_ok, other=0.0).to(dtype)
                w_tile = load_row(w_ptr + (c * 9 + r * 3 + s) * OUT, n, OUT)
                part += x_tile[:, None] * w_tile
        acc += part.to(tl.float32)
    y_ptrs = ptrs_of(y_ptr, place, n, OUT)
    tl.store(y_ptrs, activated(acc, ACTIVATION, y_ptr.dtype.element_ty), mask=ok_of(place, n, OUT))


def convolved_image(x: FeatureMap, w: Tensor, bias: Tensor, *, activation: str) -> Launch:
    """y = f(conv3x3(x)) with stride 2. w: see ``packing.image_matrix``; bias: (out,) float32."""
    y = x.like(w.shape[1], blocks_of(x.height, 2), blocks_of(x.width, 2))
    pixel = x.width * x.channels
    strides = x.strides or (x.height * pixel, 1, pixel, x.channels)
    return Launch(
        image_conv,
        arguments={
            "x_ptr": x, "w_ptr": w, "bias_ptr": bias, "y_ptr": y,
            "pixels": y.pixels, "out_height": y.height, "out_width": y.width,
            "height": x.height, "width": x.width, "image_stride": strides[0],
            "channel_stride": strides[1], "row_stride": strides[2], "column_stride": strides[3],
        },
        constants={"IN": x.channels, "OUT": y.channels, "ACTIVATION": activation, "WIDE": is_wide(x, y)},
        programs=lambda t: product_programs(t, y),
        tiles=_tiles(y),
        output=y,
        macs=y.elements * 9 * x.channels,
    )  # fmt: skip


def _tiles(y: FeatureMap) -> list[Tile]:
    """All channels, or few enough that none is made for nothing.

    With fewer than 128 pixels threads share one; with 256 the weights are read less often.
    """
    whole = round_up_to_power(y.channels)
    widths = [n for n in (16, 8) if n <= whole and y.channels % n == 0] or [whole]
    return [tile(4, 1, BM=m, BN=n) for n in widths for m in (128, 256)]
