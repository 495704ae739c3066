"""The step to the last stage on a GPU: ``blocks.AttentionDownsample`` in five launches.

1. ``depthwise``: every other pixel of x and those around it, and ``product``: q of that.
2. ``product``: k and v.
3. ``downsample_attention``: softmax(q k^T + bias) v plus the strided local branch, then f.
4. ``two_paths``: proj(u) + conv(x), both summed in the same registers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from effv2_kernels import blocks
from effv2_kernels.gpu.attention_downsample import PackedAttentionDownsample
from effv2_kernels.gpu.launch import FeatureMap, Tile, blocks_of, is_wide, round_up_to_power, tile
from effv2_kernels.gpu.packing import conv_matrix, matrix, vector
from effv2_kernels.triton.depthwise import strided_depthwise
from effv2_kernels.triton.gpu import MODEL
from effv2_kernels.triton.launch import Launch
from effv2_kernels.triton.product import pointwise_product
from effv2_kernels.triton.ranking import conv_tiles, product_programs
from effv2_kernels.triton.tiles import (
    activated,
    conv_sum,
    depthwise_tiles,
    dot,
    load_row,
    narrow,
    ok_of,
    output_tile,
    place_of,
    pointwise_sum,
    ptrs_of,
    query_tile,
)

# With fewer programs of 64 queries, they are made smaller.
_FEW_PROGRAMS = MODEL.multiprocessors

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def long_dot(a, b, acc, PRECISION: tl.constexpr):
    """As ``dot``, over many values: a sum over keys.

    Tensor cores cut off where others round, so that in a long sum of float32 ("tf32x3") all results become
    too small, and attention block after attention block adds to that: over S0 6e-7 instead of 1.9e-7. Sums of
    16 values each, added by rounding, keep it small; few values take ordinary units without spilling.
    """
    if PRECISION == "tf32x3" and a.dtype == tl.float32 and a.shape[1] >= 64:
        parts: tl.constexpr = a.shape[1] // 16
        left = tl.permute(tl.reshape(a, (a.shape[0], parts, 16)), (1, 0, 2))
        right = tl.reshape(b, (parts, 16, b.shape[1]))
        acc += tl.sum(tl.dot(left, right, input_precision=PRECISION), 0)
    else:
        acc = dot(a, b, acc, "ieee" if PRECISION == "tf32x3" else PRECISION)
    return acc


@triton.jit(do_not_specialize=["queries", "query_width", "tokens", "height", "width"])
def downsample_attention(
    q_ptr,  # (images, queries, HEADS * KEY)
    kv_ptr,  # (images, tokens, HEADS * KEY + HEADS * VALUE)
    bias_ptr,  # float32, times log2(e): (HEADS, queries, tokens) if DENSE, else (HEADS, height, width)
    local_ptr,  # (9, HEADS * VALUE), see depthwise_tiles
    local_bias_ptr,  # (HEADS * VALUE,) float32
    u_ptr,  # out: (images, queries, HEADS * VALUE)
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
    ACTIVATION: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    BQ: tl.constexpr,
    BKEYS: tl.constexpr,
):
    """One head of one tile of queries; one pass over the keys with an online softmax, since no heads mix."""
    PITCH: tl.constexpr = HEADS * KEY + HEADS * VALUE
    image, task = query_tile(queries, HEADS, BQ, WIDE)
    if WIDE:
        tokens = tokens.to(tl.int64)  # and with it what is counted up to it
    kv_ptr += image * tokens * PITCH
    head, query, query_ok = task
    place = place_of(task, query_width)
    _, _, row, column, _ = place
    d = tl.arange(0, BD)
    dv = tl.arange(0, BV)
    q_ptrs = q_ptr + (image * queries + query)[:, None] * (HEADS * KEY) + (head * KEY + d)[None, :]
    q_tile = tl.load(q_ptrs, mask=query_ok[:, None] & (d < KEY)[None, :], other=0.0)
    largest = tl.full((BQ,), float("-inf"), tl.float32)
    total = tl.zeros((BQ,), tl.float32)
    acc = tl.zeros((BQ, BV), tl.float32)
    for first in range(0, tokens, BKEYS):
        key = first + tl.arange(0, BKEYS)
        key_ok = key < tokens
        k_ptrs = kv_ptr + key[None, :] * PITCH + (head * KEY + d)[:, None]
        k_tile = tl.load(k_ptrs, mask=key_ok[None, :] & (d < KEY)[:, None], other=0.0)
        v_ptrs = kv_ptr + key[:, None] * PITCH + (HEADS * KEY + head * VALUE + dv)[None, :]
        v_tile = tl.load(v_ptrs, mask=key_ok[:, None] & (dv < VALUE)[None, :], other=0.0)
        if DENSE:
            bias_at = (head * queries + query)[:, None] * tokens + key[None, :]
        else:
            rows_apart = tl.abs(2 * row[:, None] - (key // width)[None, :])
            columns_apart = tl.abs(2 * column[:, None] - (key % width)[None, :])
            bias_at = head * tokens + rows_apart * width + columns_apart
        bias_tile = tl.load(bias_ptr + bias_at, mask=query_ok[:, None] & key_ok[None, :], other=0.0)
        # Folding log2(e) into the weights of q as well would round them a second time.
        logits = dot(q_tile, k_tile, tl.zeros((BQ, BKEYS), tl.float32), PRECISION) * LOG2_E + bias_tile
        logits = tl.where(key_ok[None, :], logits, float("-inf"))
        most = tl.maximum(largest, tl.max(logits, 1))
        share = tl.exp2(logits - most[:, None])
        shrink = tl.exp2(largest - most)
        total = total * shrink + tl.sum(share, 1)
        acc = long_dot(narrow(share, v_tile.dtype), v_tile, acc * shrink[:, None], PRECISION)
        largest = most
    c = head * VALUE + dv
    v, filters = (kv_ptr + HEADS * KEY, height, width), (local_ptr, local_bias_ptr)
    (branch,) = depthwise_tiles(v, filters, place, c, HEADS * VALUE, PITCH, 2, 1, VALUE != BV)
    out = acc / total[:, None] + branch.to(tl.float32)
    out = activated(out, ACTIVATION, u_ptr.dtype.element_ty)
    u_ptrs = u_ptr + (image * queries + query)[:, None] * (HEADS * VALUE) + c[None, :]
    tl.store(u_ptrs, out, mask=query_ok[:, None] & (dv < VALUE)[None, :])


@triton.jit(do_not_specialize=["pixels", "out_height", "out_width", "height", "width"])
def two_paths(
    u_ptr,  # (pixels, VALUES)
    proj_ptr,  # (VALUES, N)
    x_ptr,  # (.., height, width, K)
    w_ptr,  # (9, K, N)
    bias_ptr,  # (N,) float32, of both paths
    y_ptr,  # out: (pixels, N)
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
    n, place = output_tile(pixels, out_height, out_width, N, BM, BN, WIDE)
    acc = tl.zeros((BM, BN), tl.float32)
    acc = pointwise_sum(acc, u_ptr, (proj_ptr, VALUES, N, BK, BN), place, n, PRECISION)
    acc = conv_sum(acc, (x_ptr, height, width), (w_ptr, K, N, BK, BN), place, n, 3, 2, PRECISION)
    acc += load_row(bias_ptr, n, N)
    y_ptrs = ptrs_of(y_ptr, place, n, N)
    tl.store(y_ptrs, narrow(acc, y_ptr.dtype.element_ty), mask=ok_of(place, n, N))


class AttentionDownsample(PackedAttentionDownsample):
    """``blocks.AttentionDownsample`` with its weights in the kernels' layouts."""

    def __init__(
        self, block: blocks.AttentionDownsample, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        super().__init__(block, dtype, device)
        self.q, self.q_bias = matrix(block.q.weight, dtype, device), vector(block.q.bias, device)
        self.kv, self.kv_bias = matrix(block.kv.weight, dtype, device), vector(block.kv.bias, device)
        self.proj = matrix(block.proj.weight, dtype, device)
        self.conv = conv_matrix(block.conv.weight, dtype, device)
        self.out_bias = vector(block.proj.bias + block.conv.bias, device)

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
            arguments={
                "q_ptr": q, "kv_ptr": kv, "bias_ptr": bias,
                "local_ptr": self.local, "local_bias_ptr": self.local_bias, "u_ptr": u,
                "queries": queries, "query_width": width, "tokens": tokens,
                "height": x.height, "width": x.width,
            },
            constants={
                "HEADS": self.heads, "KEY": self.key_dim, "VALUE": self.value_dim,
                "BD": round_up_to_power(self.key_dim), "BV": round_up_to_power(self.value_dim),
                "DENSE": dense, "ACTIVATION": self.activation, "WIDE": wide,
                "PRECISION": _split_precision(precision),
            },
            programs=lambda t: blocks_of(queries, t.blocks["BQ"]) * self.heads * x.images,
            tiles=_tiles(queries, self.heads * x.images, x.dtype),
            output=u,
            macs=x.images * queries * self.heads
            * (tokens * (self.key_dim + self.value_dim) + 9 * self.value_dim),
        )  # fmt: skip
        y = x.like(self.proj.shape[1], height, width)
        join = Launch(
            two_paths,
            arguments={
                "u_ptr": u, "proj_ptr": self.proj, "x_ptr": x, "w_ptr": self.conv,
                "bias_ptr": self.out_bias, "y_ptr": y,
                "pixels": y.pixels, "out_height": height, "out_width": width,
                "height": x.height, "width": x.width,
            },
            constants={
                "VALUES": values, "K": x.channels, "N": y.channels, "WIDE": is_wide(u, x, y),
                "PRECISION": precision,
            },
            programs=lambda t: product_programs(t, y),
            tiles=conv_tiles(y, x.channels, before=values),
            output=y,
            macs=y.elements * (values + 9 * x.channels),
        )  # fmt: skip
        return [every_other, to_q, to_kv, attend, join]


def _split_precision(precision: str) -> str:
    """The precision of the products inside ``downsample_attention``.

    On ordinary units ("ieee") they would take more registers than there are. Split into three products of
    tf32 parts each, on tensor cores, they fit, and lose only terms below 2^-22 of a product.
    """
    return "tf32x3" if precision == "ieee" else precision


def _tiles(queries: int, images: int, dtype: torch.dtype) -> list[Tile]:
    """Tiles of ``downsample_attention``, best first: many queries at once, unless programs get too few.

    images: of all heads.
    """
    found = [tile(4, 2, BQ=64, BKEYS=64), tile(4, 2, BQ=32, BKEYS=64), tile(4, 2, BQ=16, BKEYS=64)]
    if dtype == torch.float32 or blocks_of(queries, 64) * images < _FEW_PROGRAMS:
        found.reverse()
    return [*found, tile(2, 2, BQ=16, BKEYS=32)]
