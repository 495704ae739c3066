"""Talking-head attention on a GPU: ``blocks.Attention`` in three launches, or four where pixels are few.

1. ``qkv``: one product of x, or of its strided depthwise convolution, which is made in registers.
2. ``talking_heads``: everything between the projections, the probabilities staying in registers.
3. ``proj``: a product of GELU(u), or of the GELU of u resized 2x, which is made in registers, plus x. A few
   pixels are resized by ``resize`` before: the few programs of their product would make 1024 channels each,
   step by step.
"""

from __future__ import annotations

import math
from itertools import zip_longest

import torch
import triton
import triton.language as tl

from effv2_kernels import blocks
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
from effv2_kernels.triton.packing import BiasTable, Packed, matrix, taps, vector
from effv2_kernels.triton.product import depthwise_product, pointwise_product, resized_product
from effv2_kernels.triton.tiles import (
    depthwise_tiles,
    dot,
    gelu,
    long_dot,
    narrow,
    pixel_tile,
    resized_tile,
    wait_for_earlier_launches,
)

# How the two passes of ``talking_heads`` follow from blocks.Attention. With S_g = q_g k_g^T,
#
#   L_h = sum_g T1[h, g] S_g + bias_h                    logits, which mix the heads: all S_g are needed
#   P_h = exp(L_h - m_h) / l_h                           m_h, l_h: maximum and sum over ALL keys
#   u_h = (sum_g T2[h, g] P_g + t2_h) v_h + local(v)_h   T2 mixes what is already normalised
#
# An online softmax rescales what it has accumulated whenever m or l change. Here u_h depends on the m_g and
# l_g of all heads, so it would have to keep the 8 x 8 products P_g v_h apart. Instead the first pass over the
# keys finds m_h and l_h alone, and the second makes L_h again and accumulates u_h with the final m_g and l_g.
# With all keys in one tile, the logits of the first pass are still in registers and are used again.
# Factors of log2(e) are folded into T1 and the bias on the host, so exp is exp2.


# Pixels of all images up to which the resized map is made by a launch of its own.
_FEW_PIXELS = 2048


@triton.jit
def mixed_logits(
    qkv,
    mix1,
    bias,
    query,
    query_ok,
    key,
    tokens,
    width,
    HEADS: tl.constexpr,
    KEY: tl.constexpr,
    ROW: tl.constexpr,
    BD: tl.constexpr,
    DENSE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """L_h of all heads as a tuple of (BQ, BKEYS) float32, -inf for keys beyond the last."""
    d = tl.arange(0, BD)
    key_ok = key < tokens
    products = ()
    for g in tl.static_range(HEADS):
        q = tl.load(
            qkv + query[:, None] * ROW + (g * KEY + d)[None, :],
            mask=query_ok[:, None] & (d < KEY)[None, :],
            other=0.0,
        )
        k = tl.load(
            qkv + key[None, :] * ROW + (HEADS * KEY + g * KEY + d)[:, None],
            mask=key_ok[None, :] & (d < KEY)[:, None],
            other=0.0,
        )
        products = products + (dot(q, k, tl.zeros((q.shape[0], k.shape[1]), tl.float32), PRECISION),)
    if DENSE:  # (HEADS, tokens, tokens)
        plane = tokens * tokens
        at = query[:, None] * tokens + key[None, :]
    else:  # (HEADS, rows, columns): by distance
        plane = tokens
        rows_apart = tl.abs((query // width)[:, None] - (key // width)[None, :])
        at = rows_apart * width + tl.abs((query % width)[:, None] - (key % width)[None, :])
    ok = query_ok[:, None] & key_ok[None, :]
    logits = ()
    for h in tl.static_range(HEADS):
        mixed = tl.load(bias + h * plane + at, mask=ok, other=0.0)
        for g in tl.static_range(HEADS):
            mixed += tl.load(mix1 + h * HEADS + g) * products[g]
        logits = logits + (tl.where(key_ok[None, :], mixed, float("-inf")),)
    return logits


@triton.jit
def mixed_values(
    acc,
    shares,  # of each head: exp2(L_h - m_h) / l_h
    qkv,
    mix2,
    mix2_bias,
    head,
    key,
    tokens,
    HEADS: tl.constexpr,
    KEY: tl.constexpr,
    VALUE: tl.constexpr,
    ROW: tl.constexpr,
    BV: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """acc + (sum_g T2[head, g] P_g + t2) v_head of one tile of keys."""
    key_ok = key < tokens
    mixed = tl.load(mix2_bias + head) + tl.zeros_like(shares[0])
    for g in tl.static_range(HEADS):
        mixed += tl.load(mix2 + head * HEADS + g) * shares[g]
    mixed = tl.where(key_ok[None, :], mixed, 0.0)
    d = tl.arange(0, BV)
    v = tl.load(
        qkv + key[:, None] * ROW + (2 * HEADS * KEY + head * VALUE + d)[None, :],
        mask=key_ok[:, None] & (d < VALUE)[None, :],
        other=0.0,
    )
    return long_dot(narrow(mixed, v.dtype), v, acc, PRECISION)


@triton.jit(do_not_specialize=["tokens", "height", "width"])
def talking_heads(
    qkv,  # (images, tokens, 2 * HEADS * KEY + HEADS * VALUE)
    mix1,  # (HEADS, HEADS) float32, times log2(e)
    bias,  # float32, times log2(e); see mixed_logits
    mix2,  # (HEADS, HEADS) float32
    mix2_bias,  # (HEADS,) float32
    local,  # (9, HEADS * VALUE), see depthwise_tiles
    local_bias,  # (HEADS * VALUE,) float32
    u,  # out: (images, tokens, HEADS * VALUE)
    tokens,
    height,
    width,
    HEADS: tl.constexpr,
    KEY: tl.constexpr,
    VALUE: tl.constexpr,
    BD: tl.constexpr,  # KEY and VALUE rounded up to what tl.dot takes
    BV: tl.constexpr,
    DENSE: tl.constexpr,
    GELU: tl.constexpr,
    ONE_TILE: tl.constexpr,  # all keys fit in one tile
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    BQ: tl.constexpr,
    BKEYS: tl.constexpr,
    OUT_HEADS: tl.constexpr,  # heads of u that one program makes
    OVERLAP: tl.constexpr,
):
    ROW: tl.constexpr = 2 * HEADS * KEY + HEADS * VALUE
    GROUPS: tl.constexpr = HEADS // OUT_HEADS
    tiles = tl.cdiv(tokens, BQ)
    program = tl.program_id(0)
    group = program % GROUPS
    image = program // (GROUPS * tiles)
    query = (program // GROUPS % tiles) * BQ + tl.arange(0, BQ)
    query_ok = query < tokens
    if WIDE:
        image = image.to(tl.int64)
        query = query.to(tl.int64)
        tokens = tokens.to(tl.int64)  # and with it what is counted up to it
    source = qkv + image * tokens * ROW
    keys = tl.arange(0, BKEYS)
    wait_for_earlier_launches(OVERLAP)

    if ONE_TILE:
        logits = mixed_logits(
            source, mix1, bias, query, query_ok, keys, tokens, width, HEADS, KEY, ROW, BD, DENSE, PRECISION
        )
        shares = ()
        for h in tl.static_range(HEADS):
            weight = tl.exp2(logits[h] - tl.max(logits[h], 1)[:, None])
            shares = shares + (weight / tl.sum(weight, 1)[:, None],)
        sums = ()
        for i in tl.static_range(OUT_HEADS):
            head = group * OUT_HEADS + i
            acc = tl.zeros((BQ, BV), tl.float32)
            acc = mixed_values(
                acc,
                shares,
                source,
                mix2,
                mix2_bias,
                head,
                keys,
                tokens,
                HEADS,
                KEY,
                VALUE,
                ROW,
                BV,
                PRECISION,
            )
            sums = sums + (acc,)
    else:
        largest = ()
        total = ()
        for _ in tl.static_range(HEADS):
            largest = largest + (tl.full((BQ,), float("-inf"), tl.float32),)
            total = total + (tl.zeros((BQ,), tl.float32),)
        for first in range(0, tokens, BKEYS):
            logits = mixed_logits(
                source,
                mix1,
                bias,
                query,
                query_ok,
                first + keys,
                tokens,
                width,
                HEADS,
                KEY,
                ROW,
                BD,
                DENSE,
                PRECISION,
            )
            now = ()
            so_far = ()
            for h in tl.static_range(HEADS):
                most = tl.maximum(largest[h], tl.max(logits[h], 1))
                here = tl.sum(tl.exp2(logits[h] - most[:, None]), 1)
                so_far = so_far + (total[h] * tl.exp2(largest[h] - most) + here,)
                now = now + (most,)
            largest = now
            total = so_far
        sums = ()
        for _ in tl.static_range(OUT_HEADS):
            sums = sums + (tl.zeros((BQ, BV), tl.float32),)
        for first in range(0, tokens, BKEYS):
            logits = mixed_logits(
                source,
                mix1,
                bias,
                query,
                query_ok,
                first + keys,
                tokens,
                width,
                HEADS,
                KEY,
                ROW,
                BD,
                DENSE,
                PRECISION,
            )
            shares = ()
            for h in tl.static_range(HEADS):
                shares = shares + (tl.exp2(logits[h] - largest[h][:, None]) / total[h][:, None],)
            new = ()
            for i in tl.static_range(OUT_HEADS):
                head = group * OUT_HEADS + i
                new = new + (
                    mixed_values(
                        sums[i],
                        shares,
                        source,
                        mix2,
                        mix2_bias,
                        head,
                        first + keys,
                        tokens,
                        HEADS,
                        KEY,
                        VALUE,
                        ROW,
                        BV,
                        PRECISION,
                    ),
                )
            sums = new

    for i in tl.static_range(OUT_HEADS):
        head = group * OUT_HEADS + i
        d = head * VALUE + tl.arange(0, BV)
        branch = depthwise_tiles(
            source + 2 * HEADS * KEY, local, local_bias, query * 0, query // width, query % width, query_ok,
            d, height, width, HEADS * VALUE, ROW, 1, 1, VALUE != BV,
        )[0]  # fmt: skip
        out = sums[i] + branch.to(tl.float32)
        out = gelu(out, u.dtype.element_ty) if GELU else narrow(out, u.dtype.element_ty)
        at = u + (image * tokens + query)[:, None] * (HEADS * VALUE) + d[None, :]
        tl.store(at, out, mask=query_ok[:, None] & (tl.arange(0, BV) < VALUE)[None, :])


@triton.jit(do_not_specialize=["pixels", "out_height", "out_width", "height", "width"])
def resize(
    x,  # (images, height, width, CHANNELS)
    y,  # out: (images, out_height, out_width, CHANNELS), GELU(bilinear 2x of x), cropped
    pixels,  # of y
    out_height,
    out_width,
    height,
    width,
    CHANNELS: tl.constexpr,
    WIDE: tl.constexpr,
    BM: tl.constexpr,
    BC: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    columns: tl.constexpr = (CHANNELS + BC - 1) // BC
    program = tl.program_id(0)
    c = program % columns * BC + tl.arange(0, BC)
    pixel, image, row, column, valid = pixel_tile(
        program // columns * BM, pixels, out_height, out_width, BM, WIDE
    )
    wait_for_earlier_launches(OVERLAP)
    value = resized_tile(
        x, image, row, column, valid, c, height, width, CHANNELS, CHANNELS % BC != 0, y.dtype.element_ty
    )
    tl.store(y + pixel[:, None] * CHANNELS + c[None, :], value, mask=valid[:, None] & (c < CHANNELS)[None, :])


def _tiles(tokens: int, heads: int, images: int, dtype: torch.dtype) -> list[Tile]:
    """Tiles of ``talking_heads``; the first is the one to use unmeasured.

    Where all keys fit in one tile they are taken at once. Programs that make few heads of u repeat the
    logits of all, which pays while there are more multiprocessors than tiles of queries.
    """
    few = blocks_of(tokens, 16) * images < 132
    if dtype == torch.float32:
        groups = [g for g in (1, 2) if heads % g == 0]
    else:
        groups = [g for g in ((1, 2, 4, 8) if few else (8, 4, 2, 1)) if heads % g == 0]
    if tokens <= 64:
        keys = round_up_to_power(tokens)
        wide = [tile(8, 1, BQ=16, BKEYS=keys, OUT_HEADS=g) for g in groups]
        if dtype == torch.float32:
            return wide
        narrow = [tile(4, 1, BQ=16, BKEYS=keys, OUT_HEADS=g) for g in groups if g <= 4]
        return [t for pair in zip_longest(wide, narrow) for t in pair if t is not None]
    warps = 8 if dtype == torch.float32 else 4
    groups = [g for g in groups if g <= 2]
    return [tile(warps, stages, BQ=16, BKEYS=32, OUT_HEADS=g) for g in groups for stages in (2, 1)]


class Attention(Packed):
    """``blocks.Attention`` with its weights in the kernels' layouts."""

    def __init__(self, block: blocks.Attention, dtype: torch.dtype, device: torch.device | str) -> None:
        self.dw = self.dw_bias = None
        if block.dw_weight is not None and block.dw_bias is not None:
            self.dw, self.dw_bias = taps(block.dw_weight, dtype, device), vector(block.dw_bias, device)
        self.qkv, self.qkv_bias = matrix(block.qkv_weight, dtype, device), vector(block.qkv_bias, device)
        self.mix1 = vector(block.mix1_weight * math.log2(math.e), device)
        self.bias = BiasTable(block.bias, 1, block.resize_bias, device)
        self.mix2, self.mix2_bias = vector(block.mix2_weight, device), vector(block.mix2_bias, device)
        self.local, self.local_bias = (
            taps(block.local_weight, dtype, device),
            vector(block.local_bias, device),
        )
        self.proj, self.proj_bias = matrix(block.proj_weight, dtype, device), vector(block.proj_bias, device)
        self.heads, self.key_dim, self.value_dim = block.heads, block.key_dim, block.value_dim

    def plan(self, x: FeatureMap, precision: str) -> list[Launch]:
        if self.dw is None or self.dw_bias is None:
            project = pointwise_product(x, self.qkv, self.qkv_bias, precision)
        else:
            project = depthwise_product(
                x, self.dw, self.dw_bias, self.qkv, self.qkv_bias, precision, stride=2, left_gelu=False
            )
        mix = self._talking_heads(project.output, precision, gelu=self.dw is None)
        launches, u = [project, mix], mix.output
        if self.dw is not None and x.pixels > _FEW_PIXELS:
            return [*launches, resized_product(u, self.proj, self.proj_bias, x, precision)]
        if self.dw is not None:
            launches.append(_resize(u, x))
            u = launches[-1].output
        return [*launches, pointwise_product(u, self.proj, self.proj_bias, precision, residual=x)]

    def _talking_heads(self, qkv: FeatureMap, precision: str, *, gelu: bool) -> Launch:
        u = qkv.like(self.heads * self.value_dim)
        tokens = qkv.height * qkv.width
        bias, dense = self.bias.of(qkv.height, qkv.width)
        tiles = _tiles(tokens, self.heads, qkv.images, qkv.dtype)
        arguments = {
            "qkv": qkv,
            "mix1": self.mix1,
            "bias": bias,
            "mix2": self.mix2,
            "mix2_bias": self.mix2_bias,
            "local": self.local,
            "local_bias": self.local_bias,
            "u": u,
            "tokens": tokens,
            "height": qkv.height,
            "width": qkv.width,
        }
        constants = {
            "HEADS": self.heads,
            "KEY": self.key_dim,
            "VALUE": self.value_dim,
            "BD": round_up_to_power(self.key_dim),
            "BV": round_up_to_power(self.value_dim),
            "DENSE": dense,
            "GELU": gelu,
            "ONE_TILE": tokens <= min(t.blocks["BKEYS"] for t in tiles),
            "WIDE": is_wide(qkv, u, bias),
            "PRECISION": split_precision(precision),
        }
        return Launch(
            talking_heads,
            arguments,
            constants,
            lambda t: blocks_of(tokens, t.blocks["BQ"]) * (self.heads // t.blocks["OUT_HEADS"]) * qkv.images,
            tiles,
            u,
            qkv.images
            * tokens
            * self.heads
            * (tokens * (self.key_dim + self.value_dim + 2 * self.heads) + 9 * self.value_dim),
        )


def _resize(u: FeatureMap, x: FeatureMap) -> Launch:
    """GELU(bilinear 2x of u), cropped to the size of x."""
    y = x.like(u.channels)
    return Launch(
        resize,
        {
            "x": u, "y": y, "pixels": y.pixels, "out_height": y.height, "out_width": y.width,
            "height": u.height, "width": u.width,
        },
        {"CHANNELS": u.channels, "WIDE": is_wide(y)},
        lambda t: blocks_of(y.pixels, t.blocks["BM"]) * blocks_of(y.channels, t.blocks["BC"]),
        [tile(4, 1, BM=16, BC=128), tile(4, 1, BM=32, BC=128), tile(4, 1, BM=32, BC=64)],
        y,
        0,
    )  # fmt: skip
