"""The step to the last stage on a GPU: ``blocks.AttentionDownsample`` in five launches.

1. ``depthwise``: every other pixel of x and those around it, and ``product``: q of that.
2. ``product``: k and v.
3. ``downsample_attention``: softmax(q k^T + bias) v plus the strided local branch, then GELU.
4. ``two_paths``: proj(u) + conv(x), both summed in the same registers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from effv2_kernels import blocks
from effv2_kernels.triton.depthwise import strided_depthwise
from effv2_kernels.triton.launch import (
    FeatureMap,
    Launch,
    Tile,
    blocks_of,
    is_wide,
    round_up_to_power,
    split_precision,
    tile,
)
from effv2_kernels.triton.packing import BiasTable, Packed, conv_matrix, matrix, taps, vector
from effv2_kernels.triton.product import pointwise_product
from effv2_kernels.triton.ranking import conv_tiles, product_programs
from effv2_kernels.triton.tiles import (
    conv_sum,
    depthwise_tiles,
    dot,
    gelu,
    long_dot,
    narrow,
    pixel_tile,
    pointwise_sum,
    query_tile,
)

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit(do_not_specialize=["queries", "query_width", "tokens", "height", "width"])
def downsample_attention(
    q,  # (images, queries, HEADS * KEY)
    kv,  # (images, tokens, HEADS * KEY + HEADS * VALUE)
    bias,  # float32, times log2(e): (HEADS, queries, tokens) if DENSE, else (HEADS, height, width)
    local,  # (9, HEADS * VALUE), see depthwise_tiles
    local_bias,  # (HEADS * VALUE,) float32
    u,  # out: (images, queries, HEADS * VALUE)
    queries,
    query_width,
    tokens,
    height,
    width,
    HEADS: tl.constexpr,
    KEY: tl.constexpr,
    VALUE: tl.constexpr,
    BD: tl.constexpr,  # KEY and VALUE rounded up to what tl.dot takes
    BV: tl.constexpr,
    DENSE: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    BQ: tl.constexpr,
    BKEYS: tl.constexpr,
):
    """One head of one tile of queries; one pass over the keys with an online softmax, since no heads mix."""
    ROW: tl.constexpr = HEADS * KEY + HEADS * VALUE
    head, image, query, query_ok = query_tile(queries, HEADS, BQ, WIDE)
    if WIDE:
        tokens = tokens.to(tl.int64)  # and with it what is counted up to it
    source = kv + image * tokens * ROW
    row = query // query_width
    column = query % query_width
    d = tl.arange(0, BD)
    dv = tl.arange(0, BV)
    q_tile = tl.load(
        q + (image * queries + query)[:, None] * (HEADS * KEY) + (head * KEY + d)[None, :],
        mask=query_ok[:, None] & (d < KEY)[None, :],
        other=0.0,
    )
    largest = tl.full((BQ,), float("-inf"), tl.float32)
    total = tl.zeros((BQ,), tl.float32)
    acc = tl.zeros((BQ, BV), tl.float32)
    for first in range(0, tokens, BKEYS):
        key = first + tl.arange(0, BKEYS)
        key_ok = key < tokens
        k_tile = tl.load(
            source + key[None, :] * ROW + (head * KEY + d)[:, None],
            mask=key_ok[None, :] & (d < KEY)[:, None],
            other=0.0,
        )
        v_tile = tl.load(
            source + key[:, None] * ROW + (HEADS * KEY + head * VALUE + dv)[None, :],
            mask=key_ok[:, None] & (dv < VALUE)[None, :],
            other=0.0,
        )
        if DENSE:
            at = (head * queries + query)[:, None] * tokens + key[None, :]
        else:
            rows_apart = tl.abs(2 * row[:, None] - (key // width)[None, :])
            columns_apart = tl.abs(2 * column[:, None] - (key % width)[None, :])
            at = head * tokens + rows_apart * width + columns_apart
        added = tl.load(bias + at, mask=query_ok[:, None] & key_ok[None, :], other=0.0)
        # Folding log2(e) into the weights of q as well would round them a second time.
        logits = dot(q_tile, k_tile, tl.zeros((BQ, BKEYS), tl.float32), PRECISION) * LOG2_E + added
        logits = tl.where(key_ok[None, :], logits, float("-inf"))
        most = tl.maximum(largest, tl.max(logits, 1))
        share = tl.exp2(logits - most[:, None])
        shrink = tl.exp2(largest - most)
        total = total * shrink + tl.sum(share, 1)
        acc = long_dot(narrow(share, v_tile.dtype), v_tile, acc * shrink[:, None], PRECISION)
        largest = most
    channel = head * VALUE + dv
    branch = depthwise_tiles(
        source + HEADS * KEY, local, local_bias, query * 0, row, column, query_ok, channel, height, width,
        HEADS * VALUE, ROW, 2, 1, VALUE != BV,
    )[0]  # fmt: skip
    out = gelu(acc / total[:, None] + branch.to(tl.float32), u.dtype.element_ty)
    at_u = u + (image * queries + query)[:, None] * (HEADS * VALUE) + channel[None, :]
    tl.store(at_u, out, mask=query_ok[:, None] & (dv < VALUE)[None, :])


@triton.jit(do_not_specialize=["pixels", "out_height", "out_width", "height", "width"])
def two_paths(
    u,  # (pixels, VALUES)
    proj,  # (VALUES, N)
    x,  # (.., height, width, K)
    w,  # (9, K, N)
    bias,  # (N,) float32, of both paths
    y,  # out: (pixels, N)
    pixels,
    out_height,
    out_width,
    height,
    width,
    VALUES: tl.constexpr,
    K: tl.constexpr,
    N: tl.constexpr,
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
    acc = pointwise_sum(acc, u, proj, pixel, valid, n, VALUES, N, BN, BK, PRECISION)
    acc = conv_sum(acc, x, w, image, row, column, valid, n, height, width, K, N, 2, BN, BK, PRECISION)
    inside = n < N
    acc += tl.load(bias + n, mask=inside, other=0.0)[None, :]
    at = y + pixel[:, None] * N + n[None, :]
    tl.store(at, narrow(acc, y.dtype.element_ty), mask=valid[:, None] & inside[None, :])


class AttentionDownsample(Packed):
    """``blocks.AttentionDownsample`` with its weights in the kernels' layouts."""

    def __init__(
        self, block: blocks.AttentionDownsample, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        self.dw, self.dw_bias = taps(block.dw.weight, dtype, device), vector(block.dw.bias, device)
        self.q, self.q_bias = matrix(block.q.weight, dtype, device), vector(block.q.bias, device)
        self.kv, self.kv_bias = matrix(block.kv.weight, dtype, device), vector(block.kv.bias, device)
        self.local, self.local_bias = (
            taps(block.local.weight, dtype, device),
            vector(block.local.bias, device),
        )
        self.bias = BiasTable(block.bias, 2, block.resize_bias, device)
        self.proj = matrix(block.proj.weight, dtype, device)
        self.conv = conv_matrix(block.conv.weight, dtype, device)
        self.out_bias = vector(block.proj.bias + block.conv.bias, device)
        self.heads, self.key_dim, self.value_dim = block.heads, block.key_dim, block.value_dim

    def plan(self, x: FeatureMap, precision: str) -> list[Launch]:
        height, width = blocks_of(x.height, 2), blocks_of(x.width, 2)
        every_other = strided_depthwise(x, self.dw, self.dw_bias)
        to_q = pointwise_product(every_other.output, self.q, self.q_bias, precision)
        to_kv = pointwise_product(x, self.kv, self.kv_bias, precision)
        q, kv = to_q.output, to_kv.output
        values = self.heads * self.value_dim
        u = x.like(values, height, width)
        bias, dense = self.bias.of(x.height, x.width)
        wide = is_wide(q, kv, u, bias)
        queries, tokens = height * width, x.height * x.width
        attend = Launch(
            downsample_attention,
            {
                "q": q, "kv": kv, "bias": bias, "local": self.local, "local_bias": self.local_bias, "u": u,
                "queries": queries, "query_width": width, "tokens": tokens,
                "height": x.height, "width": x.width,
            },
            {
                "HEADS": self.heads, "KEY": self.key_dim, "VALUE": self.value_dim,
                "BD": round_up_to_power(self.key_dim), "BV": round_up_to_power(self.value_dim),
                "DENSE": dense, "WIDE": wide, "PRECISION": split_precision(precision),
            },
            lambda t: blocks_of(queries, t.blocks["BQ"]) * self.heads * x.images,
            _tiles(queries, self.heads * x.images, x.dtype),
            u,
            x.images * queries * self.heads * (tokens * (self.key_dim + self.value_dim) + 9 * self.value_dim),
        )  # fmt: skip
        y = x.like(self.proj.shape[1], height, width)
        join = Launch(
            two_paths,
            {
                "u": u, "proj": self.proj, "x": x, "w": self.conv, "bias": self.out_bias, "y": y,
                "pixels": y.pixels, "out_height": height, "out_width": width,
                "height": x.height, "width": x.width,
            },
            {
                "VALUES": values, "K": x.channels, "N": y.channels, "WIDE": is_wide(u, x, y),
                "PRECISION": precision,
            },
            lambda t: product_programs(t, y),
            conv_tiles(y, x.channels, values),
            y,
            y.elements * (values + 9 * x.channels),
        )  # fmt: skip
        return [every_other, to_q, to_kv, attend, join]


def _tiles(queries: int, images: int, dtype: torch.dtype) -> list[Tile]:
    """Tiles of ``downsample_attention``, best first: many queries at once, unless programs get too few.

    images: of all heads.
    """
    found = [tile(4, 2, BQ=64, BKEYS=64), tile(4, 2, BQ=32, BKEYS=64), tile(4, 2, BQ=16, BKEYS=64)]
    if dtype == torch.float32 or blocks_of(queries, 64) * images < 264:
        found.reverse()
    return [*found, tile(2, 2, BQ=16, BKEYS=32)]
