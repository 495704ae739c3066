"""The head on a GPU: ``blocks.Head`` in one launch; the mean is made tile by tile as the left factor."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from effv2_kernels import blocks
from effv2_kernels.triton.launch import FeatureMap, Launch, blocks_of, is_wide, tile
from effv2_kernels.triton.packing import Packed, matrix, vector
from effv2_kernels.triton.tiles import dot, narrow, weight_tile


@triton.jit(do_not_specialize=["images", "positions"])
def head(
    x,  # (images, positions, K)
    w,  # (K, N)
    bias,  # (N,) float32
    y,  # out: (images, N)
    images,
    positions,
    K: tl.constexpr,
    N: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,  # images
    BP: tl.constexpr,  # positions taken at once
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    columns: tl.constexpr = (N + BN - 1) // BN
    program = tl.program_id(0)
    n = program % columns * BN + tl.arange(0, BN)
    image = program // columns * BM + tl.arange(0, BM)
    valid = image < images
    if WIDE:
        image = image.to(tl.int64)
    acc = tl.zeros((BM, BN), tl.float32)
    for k0 in range(0, K, BK):
        k = k0 + tl.arange(0, BK)
        total = tl.zeros((BM, BK), tl.float32)
        for p0 in range(0, positions, BP):
            p = p0 + tl.arange(0, BP)
            at = (image * positions)[:, None, None] + p[None, :, None]
            ok = valid[:, None, None] & (p < positions)[None, :, None] & (k < K)[None, None, :]
            values = tl.load(x + at * K + k[None, None, :], mask=ok, other=0.0)
            total += tl.sum(values.to(tl.float32), axis=1)
        left = narrow(total / positions, w.dtype.element_ty)
        acc = dot(left, weight_tile(w, k, n, K, N, BK, BN), acc, PRECISION)
    inside = n < N
    acc += tl.load(bias + n, mask=inside, other=0.0)[None, :]
    tl.store(
        y + image[:, None] * N + n[None, :],
        narrow(acc, y.dtype.element_ty),
        mask=valid[:, None] & inside[None, :],
    )


class Head(Packed):
    """``blocks.Head`` with its weights in the kernel's layout."""

    def __init__(self, block: blocks.Head, dtype: torch.dtype, device: torch.device | str) -> None:
        self.weight, self.bias = matrix(block.weight, dtype, device), vector(block.bias, device)

    def plan(self, x: FeatureMap, precision: str) -> list[Launch]:
        y = x.like(self.weight.shape[1], 1, 1)
        launch = Launch(
            head,
            {
                "x": x, "w": self.weight, "bias": self.bias, "y": y,
                "images": x.images, "positions": x.height * x.width,
            },
            {"K": x.channels, "N": y.channels, "WIDE": is_wide(x), "PRECISION": precision},
            lambda t: blocks_of(x.images, t.blocks["BM"]) * blocks_of(y.channels, t.blocks["BN"]),
            [
                tile(4, 2, BM=16, BP=8, BN=16, BK=32),
                tile(4, 2, BM=16, BP=8, BN=64, BK=32),
                tile(8, 2, BM=16, BP=16, BN=128, BK=32),
            ],
            y,
            x.images * y.channels * x.channels,
        )  # fmt: skip
        return [launch]
