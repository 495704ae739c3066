"""Talking-head attention on a GPU: ``blocks.Attention`` in four launches, or six with a stride.

1. ``product``: q, k and v of x, or of its strided ``depthwise`` convolution.
2. ``mixed_softmax``: the probabilities of each head, from the logits of all of them mixed.
3. ``mixed_values``: the probabilities of all heads mixed, times v, and the local branch.
4. ``product``: proj of f(u), or of f of u resized 2x by ``resize``, plus x.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from effv2_kernels import blocks
from effv2_kernels.gpu.attention import PackedAttention
from effv2_kernels.gpu.launch import FeatureMap, Tile, blocks_of, is_wide, round_up_to_power, tile
from effv2_kernels.gpu.packing import matrix, vector
from effv2_kernels.triton.depthwise import strided_depthwise
from effv2_kernels.triton.gpu import MODEL
from effv2_kernels.triton.launch import Launch
from effv2_kernels.triton.product import pointwise_product
from effv2_kernels.triton.tiles import (
    activated,
    depthwise_tiles,
    dot,
    narrow,
    ok_of,
    output_tile,
    place_of,
    ptrs_of,
    query_tile,
    settled,
)

# How the two launches follow from blocks.Attention. With S_g = q_g k_g^T,
#
#   L_h = sum_g T1[h, g] S_g + bias_h                    logits, which mix the heads: all S_g are needed
#   P_h = exp(L_h - m_h) / l_h                           m_h, l_h: maximum and sum over all keys
#   u_h = (sum_g T2[h, g] P_g + t2_h) v_h + local(v)_h   T2 mixes what is already normalised
#
# One program that keeps all heads in registers shares S_g and P_g between them, but their tiles lie across
# warps: it exchanged them through shared memory 120 to 400 times, and took 12.8 us for one image and 380 us
# for 256 (an H100, 49 tokens, 8 heads). Here a program makes one head, its rows within a warp each: it makes
# S_g of all heads again, which tensor cores hardly notice, and P_g goes through memory: 2 bytes per head,
# query and key, which at 224x224 the level-2 cache holds. Factors of log2(e) are folded into T1 and the bias
# on the host, so exp is exp2.

# From so many programs of 16 queries on, they are made larger.
_MANY_PROGRAMS = 4 * MODEL.multiprocessors

# Keys that are taken at once; where there are fewer, all.
_MANY_KEYS = 64


@triton.jit
def mixed_logits(
    qkv,  # (qkv_ptr, tokens, width), of one image
    mixing,  # (mix1_ptr, bias_ptr), see mixed_softmax
    task,
    key,  # (BKEYS,)
    HEADS: tl.constexpr,
    KEY: tl.constexpr,
    PITCH: tl.constexpr,
    BD: tl.constexpr,
    DENSE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """L_h of one head (BQ, BKEYS) float32, -inf for keys beyond the last."""
    qkv_ptr, tokens, width = qkv
    mix1_ptr, bias_ptr = mixing
    head, query, query_ok = task
    d = tl.arange(0, BD)
    key_ok = key < tokens
    mixed = tl.zeros((query.shape[0], key.shape[0]), tl.float32)
    for g in range(HEADS):
        q_ptrs = qkv_ptr + query[:, None] * PITCH + (g * KEY + d)[None, :]
        q_tile = tl.load(q_ptrs, mask=query_ok[:, None] & (d < KEY)[None, :], other=0.0)
        k_ptrs = qkv_ptr + key[None, :] * PITCH + (HEADS * KEY + g * KEY + d)[:, None]
        k_tile = tl.load(k_ptrs, mask=key_ok[None, :] & (d < KEY)[:, None], other=0.0)
        mix = tl.load(mix1_ptr + head * HEADS + g)
        mixed += mix * dot(q_tile, k_tile, tl.zeros_like(mixed), PRECISION)
    if DENSE:  # (HEADS, tokens, tokens)
        plane = tokens * tokens
        bias_at = query[:, None] * tokens + key[None, :]
    else:  # (HEADS, rows, columns): by distance
        plane = tokens
        rows_apart = tl.abs((query // width)[:, None] - (key // width)[None, :])
        bias_at = rows_apart * width + tl.abs((query % width)[:, None] - (key % width)[None, :])
    bias_ok = query_ok[:, None] & key_ok[None, :]
    mixed += tl.load(bias_ptr + head * plane + bias_at, mask=bias_ok, other=0.0)
    return tl.where(key_ok[None, :], mixed, float("-inf"))


@triton.jit(do_not_specialize=["tokens", "width", "key_tiles"])
def mixed_softmax(
    qkv_ptr,  # (images, tokens, PITCH)
    mix1_ptr,  # (HEADS, HEADS) float32, times log2(e)
    bias_ptr,  # float32, times log2(e); see mixed_logits
    y_ptr,  # out: (images, HEADS, tokens, key_tiles * BKEYS), P_h, zero for keys beyond the last
    tokens,
    width,
    key_tiles,
    HEADS: tl.constexpr,
    KEY: tl.constexpr,
    PITCH: tl.constexpr,  # channels of qkv: 2 * HEADS * KEY + HEADS * VALUE
    BD: tl.constexpr,  # KEY rounded up to what tl.dot takes
    DENSE: tl.constexpr,
    ONE_TILE: tl.constexpr,  # all keys fit in one tile
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    BQ: tl.constexpr,
    BKEYS: tl.constexpr,
):
    image, task = query_tile(tokens, HEADS, BQ, WIDE)
    head, query, query_ok = task
    if WIDE:
        tokens = tokens.to(tl.int64)  # and with it what is counted up to it
    qkv = (qkv_ptr + image * tokens * PITCH, tokens, width)
    mixing = (mix1_ptr, bias_ptr)
    y_ptrs = y_ptr + ((image * HEADS + head) * tokens + query)[:, None] * (key_tiles * BKEYS)
    dtype: tl.constexpr = y_ptr.dtype.element_ty
    keys = tl.arange(0, BKEYS)
    if ONE_TILE:
        logits = mixed_logits(qkv, mixing, task, keys, HEADS, KEY, PITCH, BD, DENSE, PRECISION)
        weight = tl.exp2(logits - tl.max(logits, 1)[:, None])
        share = narrow(weight / tl.sum(weight, 1)[:, None], dtype)
        tl.store(y_ptrs + keys[None, :], share, mask=query_ok[:, None])
    else:
        largest = tl.full((BQ,), float("-inf"), tl.float32)
        total = tl.zeros((BQ,), tl.float32)
        for first in range(0, tokens, BKEYS):
            key = first + keys
            logits = mixed_logits(qkv, mixing, task, key, HEADS, KEY, PITCH, BD, DENSE, PRECISION)
            most = tl.maximum(largest, tl.max(logits, 1))
            total = total * tl.exp2(largest - most) + tl.sum(tl.exp2(logits - most[:, None]), 1)
            largest = most
        for first in range(0, tokens, BKEYS):
            key = first + keys
            logits = mixed_logits(qkv, mixing, task, key, HEADS, KEY, PITCH, BD, DENSE, PRECISION)
            share = narrow(tl.exp2(logits - largest[:, None]) / total[:, None], dtype)
            tl.store(y_ptrs + key[None, :], share, mask=query_ok[:, None])


@triton.jit(do_not_specialize=["tokens", "height", "width", "key_tiles"])
def mixed_values(
    qkv_ptr,  # (images, tokens, 2 * HEADS * KEY + HEADS * VALUE)
    shares_ptr,  # (images, HEADS, tokens, key_tiles * BKEYS), see mixed_softmax
    mix2_ptr,  # (HEADS, HEADS) float32
    mix2_bias_ptr,  # (HEADS,) float32
    local_ptr,  # (9, HEADS * VALUE), see depthwise_tiles
    local_bias_ptr,  # (HEADS * VALUE,) float32
    u_ptr,  # out: (images, tokens, HEADS * VALUE)
    tokens,
    height,
    width,
    key_tiles,
    HEADS: tl.constexpr,
    KEY: tl.constexpr,
    VALUE: tl.constexpr,
    BV: tl.constexpr,  # VALUE rounded up to what tl.dot takes
    ACTIVATION: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    BQ: tl.constexpr,
    BKEYS: tl.constexpr,
):
    PITCH: tl.constexpr = 2 * HEADS * KEY + HEADS * VALUE
    image, task = query_tile(tokens, HEADS, BQ, WIDE)
    head, query, query_ok = task
    if WIDE:
        tokens = tokens.to(tl.int64)  # and with it what is counted up to it
    qkv_ptr += image * tokens * PITCH
    plane = tokens * (key_tiles * BKEYS)
    shares_ptrs = shares_ptr + image * HEADS * plane + query[:, None] * (key_tiles * BKEYS)
    c = head * VALUE + tl.arange(0, BV)
    c_ok = tl.arange(0, BV) < VALUE
    acc = tl.zeros((BQ, BV), tl.float32)
    for first in range(0, tokens, BKEYS):
        key = first + tl.arange(0, BKEYS)
        v_ok = (key < tokens)[:, None] & c_ok[None, :]
        v_ptrs = qkv_ptr + key[:, None] * PITCH + (2 * HEADS * KEY + c)[None, :]
        v_tile = tl.load(v_ptrs, mask=v_ok, other=0.0)
        mixed = tl.zeros((BQ, BKEYS), tl.float32) + tl.load(mix2_bias_ptr + head)
        for g in range(HEADS):
            share = tl.load(shares_ptrs + g * plane + key[None, :], mask=query_ok[:, None], other=0.0)
            mixed += tl.load(mix2_ptr + head * HEADS + g) * share.to(tl.float32)
        if v_tile.dtype == tl.bfloat16:  # one rounding to its 8 bits less, of which there are many here
            acc = tl.dot(mixed, v_tile.to(tl.float32), acc, input_precision="tf32")
        else:
            acc = dot(settled(narrow(mixed, v_tile.dtype)), v_tile, acc, PRECISION)
    v, filters = (qkv_ptr + 2 * HEADS * KEY, height, width), (local_ptr, local_bias_ptr)
    place = place_of(task, width)
    (branch,) = depthwise_tiles(v, filters, place, c, HEADS * VALUE, PITCH, 1, 1, VALUE != BV)
    out = acc + branch.to(tl.float32)
    out = activated(out, ACTIVATION, u_ptr.dtype.element_ty)
    u_ptrs = u_ptr + (image * tokens + query)[:, None] * (HEADS * VALUE) + c[None, :]
    tl.store(u_ptrs, out, mask=query_ok[:, None] & c_ok[None, :])


@triton.jit
def resized_tile(
    x,
    place,  # of the larger map
    c,  # (BC,)
    CHANNELS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    MASKED: tl.constexpr,  # c may pass CHANNELS
    dtype: tl.constexpr,
):
    """(BM, BC): f(bilinear 2x of x) at some pixels and channels (align_corners=False).

    A pixel of the larger map lies a quarter of a pixel from the nearer row of x and three quarters from the
    farther one, which is the nearer one again at the edge; columns alike. float16 is interpolated in float16:
    see depthwise_tiles.
    """
    x_ptr, height, width = x
    _, image, row, column, place_ok = place
    near_row, near_column = row // 2, column // 2
    far_row = tl.minimum(tl.maximum(near_row + (row % 2) * 2 - 1, 0), height - 1)
    far_column = tl.minimum(tl.maximum(near_column + (column % 2) * 2 - 1, 0), width - 1)
    near_at = (image * height + near_row) * width
    far_at = (image * height + far_row) * width
    between: tl.constexpr = tl.float16 if dtype == tl.float16 else tl.float32
    quarter, three_quarters = tl.full((), 0.25, between), tl.full((), 0.75, between)
    ok = place_ok[:, None] & (c < CHANNELS)[None, :] if MASKED else place_ok[:, None]
    c = c[None, :]
    nn = tl.load(x_ptr + (near_at + near_column)[:, None] * CHANNELS + c, mask=ok, other=0.0).to(between)
    nf = tl.load(x_ptr + (near_at + far_column)[:, None] * CHANNELS + c, mask=ok, other=0.0).to(between)
    fn = tl.load(x_ptr + (far_at + near_column)[:, None] * CHANNELS + c, mask=ok, other=0.0).to(between)
    ff = tl.load(x_ptr + (far_at + far_column)[:, None] * CHANNELS + c, mask=ok, other=0.0).to(between)
    nearer = nn * three_quarters + nf * quarter
    farther = fn * three_quarters + ff * quarter
    return activated(nearer * three_quarters + farther * quarter, ACTIVATION, dtype)


@triton.jit(do_not_specialize=["pixels", "out_height", "out_width", "height", "width"])
def resize(
    x_ptr,  # (images, height, width, CHANNELS)
    y_ptr,  # out: (images, out_height, out_width, CHANNELS), f(bilinear 2x of x), cropped
    pixels,  # of y
    out_height,
    out_width,
    height,
    width,
    CHANNELS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    WIDE: tl.constexpr,
    BM: tl.constexpr,
    BC: tl.constexpr,
):
    c, place = output_tile(pixels, out_height, out_width, CHANNELS, BM, BC, WIDE)
    dtype: tl.constexpr = y_ptr.dtype.element_ty
    x = (x_ptr, height, width)
    y_tile = resized_tile(x, place, c, CHANNELS, ACTIVATION, CHANNELS % BC != 0, dtype)
    tl.store(ptrs_of(y_ptr, place, c, CHANNELS), y_tile, mask=ok_of(place, c, CHANNELS))


def _softmax_tiles(keys: int, programs: int, dtype: torch.dtype) -> list[Tile]:
    """Tiles of ``mixed_softmax``, best first: a warp for every 16 queries, or four where programs are few.

    programs: how many there are with 16 queries each.
    """
    if dtype == torch.float32:
        return [tile(4, 1, BQ=16, BKEYS=keys), tile(4, 1, BQ=32, BKEYS=keys)]
    many, few = ((4, 64), (2, 32), (1, 16)), ((4, 16), (2, 16))
    shapes = [*many, *few] if programs >= _MANY_PROGRAMS else [*few, *reversed(many)]
    return [tile(warps, 2, BQ=m, BKEYS=keys) for warps, m in shapes]


def _values_tiles(keys: int, programs: int, dtype: torch.dtype) -> list[Tile]:
    """Tiles of ``mixed_values``, best first; see ``_softmax_tiles``."""
    if dtype == torch.float32:
        return [tile(4, 1, BQ=16, BKEYS=keys), tile(8, 1, BQ=32, BKEYS=keys)]
    shapes = [(8, 64), (8, 32), (4, 16), (8, 16)]
    return [tile(w, 2, BQ=m, BKEYS=keys) for w, m in (shapes if programs >= _MANY_PROGRAMS else shapes[::-1])]


class Attention(PackedAttention):
    """``blocks.Attention`` with its weights in the kernels' layouts."""

    def __init__(self, block: blocks.Attention, dtype: torch.dtype, device: torch.device | str) -> None:
        super().__init__(block, dtype, device)
        self.qkv, self.qkv_bias = matrix(block.qkv.weight, dtype, device), vector(block.qkv.bias, device)
        self.proj, self.proj_bias = matrix(block.proj.weight, dtype, device), vector(block.proj.bias, device)

    def plan(self, x: FeatureMap, precision: str) -> list[Launch]:
        launches: list[Launch] = []
        source = x
        if self.dw is not None and self.dw_bias is not None:
            launches.append(strided_depthwise(x, self.dw, self.dw_bias))
            source = launches[-1].output
        launches.append(pointwise_product(source, self.qkv, self.qkv_bias, precision))
        # What is resized is activated behind that.
        activation = "none" if self.dw is not None else self.activation
        launches += self._talking_heads(launches[-1].output, precision, activation)
        if self.dw is not None:
            launches.append(_resize(launches[-1].output, x, self.activation))
        u = launches[-1].output
        return [*launches, pointwise_product(u, self.proj, self.proj_bias, precision, residual=x)]

    def _talking_heads(self, qkv: FeatureMap, precision: str, activation: str) -> list[Launch]:
        # What is resized is not rounded before; to the 8 bits of bfloat16 that would be one time too many.
        precise = qkv.dtype == torch.bfloat16 and self.dw is not None
        dtype = torch.float32 if precise else qkv.dtype
        u = FeatureMap(qkv.images, qkv.height, qkv.width, self.heads * self.value_dim, dtype)
        tokens = qkv.height * qkv.width
        # Rows of P_h are filled up to whole tiles, so that they can be read 16 bytes at once.
        keys = min(round_up_to_power(tokens), _MANY_KEYS)
        key_tiles = blocks_of(tokens, keys)
        # Probabilities are at most 1: float16 holds them more precisely than bfloat16.
        half = torch.float32 if qkv.dtype == torch.float32 else torch.float16
        shares = FeatureMap(qkv.images, self.heads, tokens, key_tiles * keys, half)
        bias, dense = self.bias.of(qkv.height, qkv.width)
        small = blocks_of(tokens, 16) * self.heads * qkv.images
        sizes = {"HEADS": self.heads, "KEY": self.key_dim}
        common = {"WIDE": is_wide(qkv, u, bias, shares), "PRECISION": precision}

        def programs(t: Tile) -> int:
            return blocks_of(tokens, t.blocks["BQ"]) * self.heads * qkv.images

        softmax = Launch(
            mixed_softmax,
            arguments={
                "qkv_ptr": qkv, "mix1_ptr": self.mix1, "bias_ptr": bias, "y_ptr": shares,
                "tokens": tokens, "width": qkv.width, "key_tiles": key_tiles,
            },
            constants=sizes
            | {"PITCH": qkv.channels, "BD": round_up_to_power(self.key_dim), "DENSE": dense}
            | {"ONE_TILE": tokens <= keys}
            | common,
            programs=programs,
            tiles=_softmax_tiles(keys, small, qkv.dtype),
            output=shares,
            macs=qkv.images * tokens * self.heads * tokens * (self.key_dim + self.heads),
        )  # fmt: skip
        values = Launch(
            mixed_values,
            arguments={
                "qkv_ptr": qkv, "shares_ptr": shares,
                "mix2_ptr": self.mix2, "mix2_bias_ptr": self.mix2_bias,
                "local_ptr": self.local, "local_bias_ptr": self.local_bias, "u_ptr": u,
                "tokens": tokens, "height": qkv.height, "width": qkv.width, "key_tiles": key_tiles,
            },
            constants=sizes
            | {"VALUE": self.value_dim, "BV": round_up_to_power(self.value_dim), "ACTIVATION": activation}
            | common,
            programs=programs,
            tiles=_values_tiles(keys, small, qkv.dtype),
            output=u,
            macs=qkv.images * tokens * self.heads
            * (tokens * (self.value_dim + self.heads) + 9 * self.value_dim),
        )  # fmt: skip
        return [softmax, values]


def _resize(u: FeatureMap, x: FeatureMap, activation: str) -> Launch:
    """f(bilinear 2x of u), cropped to the size of x, in the dtype of x."""
    y = x.like(u.channels)
    return Launch(
        resize,
        arguments={
            "x_ptr": u, "y_ptr": y, "pixels": y.pixels, "out_height": y.height, "out_width": y.width,
            "height": u.height, "width": u.width,
        },
        constants={"CHANNELS": u.channels, "ACTIVATION": activation, "WIDE": is_wide(y)},
        programs=lambda t: blocks_of(y.pixels, t.blocks["BM"]) * blocks_of(y.channels, t.blocks["BC"]),
        tiles=[tile(4, 1, BM=16, BC=128), tile(4, 1, BM=32, BC=128), tile(4, 1, BM=32, BC=64)],
        output=y,
        macs=0,
    )  # fmt: skip
