"""The stem on a GPU: ``blocks.Stem`` in one launch.

For each tap of the second convolution, the first one is made at the pixels that this tap reads, in registers,
and goes straight into the second product. A pixel of the middle map is read by 9 / 4 taps on average and made
as often; in return the largest map of the network, four times the size of the stem's output, never exists.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from effv2_kernels import blocks
from effv2_kernels.triton.launch import FeatureMap, Launch, blocks_of, is_wide, round_up_to_power, tile
from effv2_kernels.triton.packing import Packed, conv_matrix, vector
from effv2_kernels.triton.tiles import dot, gelu, narrow, pixel_tile, weight_tile


@triton.jit(
    do_not_specialize=[
        "pixels", "out_height", "out_width", "mid_height", "mid_width", "height", "width",
        "image_stride", "channel_stride", "row_stride", "column_stride",
    ]
)  # fmt: skip
def stem(
    x,  # (images, IN, height, width) with the strides given
    w1,  # (9 * IN, MID): taps outermost
    bias1,  # (MID,) float32
    w2,  # (9, MID, OUT)
    bias2,  # (OUT,) float32
    y,  # out: (pixels, OUT)
    pixels,
    out_height,
    out_width,
    mid_height,
    mid_width,
    height,
    width,
    image_stride,
    channel_stride,
    row_stride,
    column_stride,
    IN: tl.constexpr,
    MID: tl.constexpr,
    OUT: tl.constexpr,
    BMID: tl.constexpr,  # MID rounded up to what tl.dot takes
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BP: tl.constexpr,  # values of a patch (9 * IN) taken at once
):
    columns: tl.constexpr = (OUT + BN - 1) // BN
    EXACT: tl.constexpr = y.dtype.element_ty == tl.float32
    program = tl.program_id(0)
    n = program % columns * BN + tl.arange(0, BN)
    pixel, image, row, column, valid = pixel_tile(
        program // columns * BM, pixels, out_height, out_width, BM, WIDE
    )
    middle = tl.arange(0, BMID)
    acc = tl.zeros((BM, BN), tl.float32)
    for tap in range(9):
        mid_row = row * 2 + (tap // 3 - 1)
        mid_column = column * 2 + (tap % 3 - 1)
        exists = (
            valid & (mid_row >= 0) & (mid_row < mid_height) & (mid_column >= 0) & (mid_column < mid_width)
        )
        mid = tl.zeros((BM, BMID), tl.float32)
        for p0 in range(0, 9 * IN, BP):
            p = p0 + tl.arange(0, BP)
            channel = p % IN
            at_row = (mid_row * 2 - 1)[:, None] + (p // (3 * IN))[None, :]
            at_column = (mid_column * 2 - 1)[:, None] + (p // IN % 3)[None, :]
            inside = (at_row >= 0) & (at_row < height) & (at_column >= 0) & (at_column < width)
            patch = tl.load(
                x
                + (image * image_stride)[:, None]
                + (channel * channel_stride)[None, :]
                + at_row * row_stride
                + at_column * column_stride,
                mask=inside & exists[:, None] & (p < 9 * IN)[None, :],
                other=0.0,
            )
            mid = dot(patch, weight_tile(w1, p, middle, 9 * IN, MID, BP, BMID), mid, PRECISION)
        mid = gelu(mid + tl.load(bias1 + middle, mask=middle < MID, other=0.0)[None, :], EXACT)
        mid = tl.where(exists[:, None], mid, 0.0)
        right = weight_tile(w2 + tap * MID * OUT, middle, n, MID, OUT, BMID, BN)
        acc = dot(narrow(mid, w2.dtype.element_ty), right, acc, PRECISION)
    inside_n = n < OUT
    acc = gelu(acc + tl.load(bias2 + n, mask=inside_n, other=0.0)[None, :], EXACT)
    tl.store(
        y + pixel[:, None] * OUT + n[None, :],
        narrow(acc, y.dtype.element_ty),
        mask=valid[:, None] & inside_n[None, :],
    )


class Stem(Packed):
    """``blocks.Stem`` with its weights in the kernel's layouts. The image may have any strides."""

    def __init__(self, block: blocks.Stem, dtype: torch.dtype, device: torch.device | str) -> None:
        self.w1, self.bias1 = conv_matrix(block.conv1_weight, dtype, device), vector(block.conv1_bias, device)
        self.w2, self.bias2 = conv_matrix(block.conv2_weight, dtype, device), vector(block.conv2_bias, device)

    def plan(self, x: FeatureMap, precision: str) -> list[Launch]:
        mid_height, mid_width = blocks_of(x.height, 2), blocks_of(x.width, 2)
        mid, out = self.w2.shape[1:]
        y = x.like(out, blocks_of(mid_height, 2), blocks_of(mid_width, 2))
        pixel = x.width * x.channels
        strides = x.strides or (x.height * pixel, 1, pixel, x.channels)
        patch = min(128, round_up_to_power(9 * x.channels))
        columns = min(128, round_up_to_power(out))
        launch = Launch(
            stem,
            {
                "x": x, "w1": self.w1, "bias1": self.bias1, "w2": self.w2, "bias2": self.bias2, "y": y,
                "pixels": y.pixels, "out_height": y.height, "out_width": y.width,
                "mid_height": mid_height, "mid_width": mid_width, "height": x.height, "width": x.width,
                "image_stride": strides[0], "channel_stride": strides[1],
                "row_stride": strides[2], "column_stride": strides[3],
            },
            {
                "IN": x.channels, "MID": mid, "OUT": out, "BMID": round_up_to_power(mid),
                "WIDE": is_wide(x, y), "PRECISION": precision,
            },
            lambda t: blocks_of(y.pixels, t.blocks["BM"]) * blocks_of(out, t.blocks["BN"]),
            [
                tile(4, 2, BM=32, BN=columns, BP=patch),
                tile(4, 2, BM=64, BN=columns, BP=patch),
                tile(4, 2, BM=128, BN=columns, BP=patch),
            ],
            y,
            9 * (x.images * mid_height * mid_width * mid * x.channels + y.elements * mid),
        )  # fmt: skip
        return [launch]
