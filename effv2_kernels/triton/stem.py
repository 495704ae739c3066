"""The stem on a GPU: ``blocks.Stem`` in two launches.

1. ``image_conv``: the first convolution, which reads an image of any strides, and GELU.
2. ``conv``: the second one, and GELU.

In one launch, the first convolution would be made again for each tap of the second one that reads it: the
largest map of the network would not exist, but it took 2.8 times the instructions.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from effv2_kernels import blocks
from effv2_kernels.triton.conv import strided_conv
from effv2_kernels.triton.gpu import MODEL
from effv2_kernels.triton.launch import FeatureMap, Launch, Tile, blocks_of, is_wide, round_up_to_power, tile
from effv2_kernels.triton.packing import Packed, conv_matrix, half_or_float, matrix, vector
from effv2_kernels.triton.ranking import product_programs
from effv2_kernels.triton.tiles import gelu, load_row, ok_of, output_tile, ptrs_of


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
    tl.store(y_ptrs, gelu(acc, y_ptr.dtype.element_ty), mask=ok_of(place, n, OUT))


class Stem(Packed):
    """``blocks.Stem`` with its weights in the kernels' layouts. The image may have any strides."""

    def __init__(self, block: blocks.Stem, dtype: torch.dtype, device: torch.device | str) -> None:
        self.w1 = matrix(block.conv1.weight.flatten(1), half_or_float(dtype), device)
        self.bias1 = vector(block.conv1.bias, device)
        self.w2, self.bias2 = conv_matrix(block.conv2.weight, dtype, device), vector(block.conv2.bias, device)

    def plan(self, x: FeatureMap, precision: str) -> list[Launch]:
        middle = x.like(self.w1.shape[1], blocks_of(x.height, 2), blocks_of(x.width, 2))
        pixel = x.width * x.channels
        strides = x.strides or (x.height * pixel, 1, pixel, x.channels)
        first = Launch(
            image_conv,
            {
                "x_ptr": x, "w_ptr": self.w1, "bias_ptr": self.bias1, "y_ptr": middle,
                "pixels": middle.pixels, "out_height": middle.height, "out_width": middle.width,
                "height": x.height, "width": x.width, "image_stride": strides[0],
                "channel_stride": strides[1], "row_stride": strides[2], "column_stride": strides[3],
            },
            {"IN": x.channels, "OUT": middle.channels, "WIDE": is_wide(x, middle)},
            lambda t: product_programs(t, middle),
            _tiles(middle),
            middle,
            middle.elements * 9 * x.channels,
        )  # fmt: skip
        return [first, strided_conv(middle, self.w2, self.bias2, precision, activation="gelu")]


# Beyond two programs of 256 pixels for each multiprocessor.
_MANY_PIXELS = 2 * 256 * MODEL.multiprocessors


def _tiles(middle: FeatureMap) -> list[Tile]:
    """Tiles of ``image_conv``: all channels, or few enough that none is made for nothing.

    With fewer than 128 pixels threads share one; with 256 the weights are read less often.
    """
    whole = round_up_to_power(middle.channels)
    widths = [n for n in (16, 8) if n <= whole and middle.channels % n == 0] or [whole]
    sizes = (256, 128) if middle.pixels > _MANY_PIXELS else (128, 256)
    return [tile(4, 1, BM=m, BN=n) for n in widths for m in sizes]
