"""The strided convolution on a GPU: ``blocks.Conv`` in one launch, which the stem uses as well."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from effv2_kernels import blocks
from effv2_kernels.triton.launch import FeatureMap, Launch, blocks_of, is_wide
from effv2_kernels.triton.packing import Packed, conv_matrix, vector
from effv2_kernels.triton.ranking import conv_tiles, product_programs
from effv2_kernels.triton.tiles import activated, conv_sum, load_row, ok_of, output_tile, ptrs_of


@triton.jit(do_not_specialize=["pixels", "out_height", "out_width", "height", "width"])
def conv(
    x_ptr,  # (.., height, width, K)
    w_ptr,  # (KERNEL * KERNEL, K, N)
    bias_ptr,  # (N,) float32
    y_ptr,  # out: (pixels, N)
    pixels,
    out_height,
    out_width,
    height,
    width,
    K: tl.constexpr,
    N: tl.constexpr,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    n, place = output_tile(pixels, out_height, out_width, N, BM, BN, WIDE)
    acc = tl.zeros((BM, BN), tl.float32)
    acc = conv_sum(acc, (x_ptr, height, width), (w_ptr, K, N, BK, BN), place, n, KERNEL, STRIDE, PRECISION)
    acc += load_row(bias_ptr, n, N)
    dtype: tl.constexpr = y_ptr.dtype.element_ty
    tl.store(
        ptrs_of(y_ptr, place, n, N),
        activated(acc, ACTIVATION, dtype),
        mask=ok_of(place, n, N),
    )


def strided_conv(
    x: FeatureMap, w: Tensor, bias: Tensor, precision: str, *, activation: str, stride: int = 2
) -> Launch:
    """y = f(conv(x)), 3x3 or 1x1. w: (9 or 1, in, out), bias: (out,) float32."""
    taps = w.shape[0]
    y = x.like(w.shape[2], blocks_of(x.height, stride), blocks_of(x.width, stride))
    return Launch(
        conv,
        {
            "x_ptr": x, "w_ptr": w, "bias_ptr": bias, "y_ptr": y, "pixels": y.pixels,
            "out_height": y.height, "out_width": y.width, "height": x.height, "width": x.width,
        },
        {
            "K": x.channels, "N": y.channels, "KERNEL": math.isqrt(taps), "STRIDE": stride,
            "ACTIVATION": activation, "WIDE": is_wide(x, y), "PRECISION": precision,
        },
        lambda t: product_programs(t, y),
        conv_tiles(y, x.channels, taps=taps),
        y,
        y.elements * taps * x.channels,
    )  # fmt: skip


class Conv(Packed):
    """``blocks.Conv`` with its weights in the kernel's layout."""

    def __init__(self, block: blocks.Conv, dtype: torch.dtype, device: torch.device | str) -> None:
        self.weight, self.bias = (
            conv_matrix(block.conv.weight, dtype, device),
            vector(block.conv.bias, device),
        )

    def plan(self, x: FeatureMap, precision: str) -> list[Launch]:
        return [strided_conv(x, self.weight, self.bias, precision, activation="none")]
