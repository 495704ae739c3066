"""The strided convolution on a GPU: ``blocks.Conv`` in one launch, which the stem uses as well."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from effv2_kernels import blocks
from effv2_kernels.triton.launch import FeatureMap, Launch, blocks_of, is_wide
from effv2_kernels.triton.packing import Packed, conv_matrix, vector
from effv2_kernels.triton.ranking import conv_tiles, product_programs
from effv2_kernels.triton.tiles import conv_sum, gelu, narrow, pixel_tile


@triton.jit(do_not_specialize=["pixels", "out_height", "out_width", "height", "width"])
def conv(
    x,  # (.., height, width, K)
    w,  # (9, K, N)
    bias,  # (N,) float32
    y,  # out: (pixels, N)
    pixels,
    out_height,
    out_width,
    height,
    width,
    K: tl.constexpr,
    N: tl.constexpr,
    GELU: tl.constexpr,
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
    acc = conv_sum(
        acc, x, w, image, row, column, valid, n, height, width, K, N, 2, BN, BK, PRECISION
    )  # fmt: skip
    inside = n < N
    acc += tl.load(bias + n, mask=inside, other=0.0)[None, :]
    dtype: tl.constexpr = y.dtype.element_ty
    tl.store(
        y + pixel[:, None] * N + n[None, :],
        gelu(acc, dtype) if GELU else narrow(acc, dtype),
        mask=valid[:, None] & inside[None, :],
    )


def strided_conv(x: FeatureMap, w: Tensor, bias: Tensor, precision: str, *, gelu: bool) -> Launch:
    """y = f(conv3x3 s2 (x)). w: (9, in, out), bias: (out,) float32."""
    y = x.like(w.shape[2], blocks_of(x.height, 2), blocks_of(x.width, 2))
    return Launch(
        conv,
        {
            "x": x, "w": w, "bias": bias, "y": y, "pixels": y.pixels,
            "out_height": y.height, "out_width": y.width, "height": x.height, "width": x.width,
        },
        {"K": x.channels, "N": y.channels, "GELU": gelu, "WIDE": is_wide(x, y), "PRECISION": precision},
        lambda t: product_programs(t, y),
        conv_tiles(y, x.channels),
        y,
        y.elements * 9 * x.channels,
    )  # fmt: skip


class Conv(Packed):
    """``blocks.Conv`` with its weights in the kernel's layout."""

    def __init__(self, block: blocks.Conv, dtype: torch.dtype, device: torch.device | str) -> None:
        self.weight, self.bias = (
            conv_matrix(block.conv.weight, dtype, device),
            vector(block.conv.bias, device),
        )

    def plan(self, x: FeatureMap, precision: str) -> list[Launch]:
        return [strided_conv(x, self.weight, self.bias, precision, gelu=False)]
