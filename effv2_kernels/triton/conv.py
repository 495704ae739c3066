"""The convolution on a GPU: ``blocks.Conv`` in one launch.

``conv`` is for all of them, and the stem's second one; those of an image are an ``image_conv``, and 1x1 with
stride 1 a ``product``.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from effv2_kernels import blocks
from effv2_kernels.gpu.launch import FeatureMap, blocks_of, is_wide
from effv2_kernels.gpu.packing import Packed, conv_matrix, image_matrix, vector
from effv2_kernels.triton.image_conv import convolved_image
from effv2_kernels.triton.launch import Launch
from effv2_kernels.triton.product import pointwise_product
from effv2_kernels.triton.ranking import conv_tiles, product_programs
from effv2_kernels.triton.tiles import activated, conv_sum, load_row, ok_of, output_tile, ptrs_of

# Up to so many channels ``image_conv`` takes fewer instructions in every dtype (of 3 to 32, on sm_90,
# 0.4 times as many in float16 and 0.7 in bfloat16); and no image has to be copied for its strides.
_FEW_CHANNELS = 4


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
        arguments={
            "x_ptr": x, "w_ptr": w, "bias_ptr": bias, "y_ptr": y, "pixels": y.pixels,
            "out_height": y.height, "out_width": y.width, "height": x.height, "width": x.width,
        },
        constants={
            "K": x.channels, "N": y.channels, "KERNEL": math.isqrt(taps), "STRIDE": stride,
            "ACTIVATION": activation, "WIDE": is_wide(x, y), "PRECISION": precision,
        },
        programs=lambda t: product_programs(t, y),
        tiles=conv_tiles(y, x.channels, taps=taps),
        output=y,
        macs=y.elements * taps * x.channels,
    )  # fmt: skip


class Conv(Packed):
    """``blocks.Conv`` with its weights in the kernel's layout."""

    def __init__(self, block: blocks.Conv, dtype: torch.dtype, device: torch.device | str) -> None:
        _, channels, kernel, _ = block.conv.weight.shape
        self.kernel, self.stride, self.activation = kernel, block.stride, block.activation
        self.reads_any_layout = channels <= _FEW_CHANNELS and (kernel, block.stride) == (3, 2)
        layout = image_matrix if self.reads_any_layout else conv_matrix
        self.weight, self.bias = layout(block.conv.weight, dtype, device), vector(block.conv.bias, device)

    def plan(self, x: FeatureMap, precision: str) -> list[Launch]:
        w, bias, activation = self.weight, self.bias, self.activation
        if self.reads_any_layout:
            return [convolved_image(x, w, bias, activation=activation)]
        if self.kernel == self.stride == 1:  # in float16 half the instructions of ``conv``, in float32 0.85
            return [pointwise_product(x, w[0], bias, precision, activation=activation)]
        return [strided_conv(x, w, bias, precision, activation=activation, stride=self.stride)]
