"""Tiles of the products, best first: candidates, ordered by how long a GPU should need for them.

Their order is what runs unmeasured; ``tune`` measures the first of them. The model knows what fits on a
multiprocessor at once, and what it waits for: issuing instructions, the chain of a single program, or
loads. Its constants were fitted to the times of 3823 tiles of 487 launches in float16 on an H100
(bench/results), those of both families at 1 to 256 images: there the first tile takes 1.05 times as long as
the best one (geometric mean; 1.9 at most), and of launches that a fit had not seen 1.04 to 1.12 times, by
kind. It orders tiles; what it calls cycles is not time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from effv2_kernels.gpu.launch import FeatureMap, Tile, blocks_of, round_up_to_power, tile
from effv2_kernels.triton.gpu import MODEL, WARP, WARP_ROWS, Work

_KEPT = 12  # candidates that tuning measures

# Registers of a thread beside its sums, and those for each value of a left factor that it holds.
_REGISTERS = 80
_HELD = 1.5

# Instructions of a thread of ``hidden`` for its convolution: for as many pixels as a program makes at once,
# and for each value, whose neighbours it loads as well.
_AROUND_DEPTHWISE = 350
_DEPTHWISE = 70

# ``hidden`` makes no more values at once for each thread, which leaves registers for the loads of its
# convolution; and in float32 bands of rows with about so many pixels.
_HIDDEN_VALUES = 32
_FLOAT32_BAND = 256


@dataclass(frozen=True)
class Cost:
    """Instructions of one thread.

    left: for each value of the left factor that it makes. out: for each value of the output. step: for each
    step of the sum. copies: whether all warps make the same left factor where there are more of them than
    blocks of 16 rows.
    """

    left: float
    out: float
    step: float
    copies: bool


# By source of the product, in half precision; see depthwise_tiles about float16. Those of bfloat16, of which
# no times are known, have in addition what its compiled kernels have.
_COSTS = {
    ("pointwise", torch.float16): Cost(3, 26, 80, False),
    ("pointwise", torch.bfloat16): Cost(3, 30, 80, False),
    ("depthwise", torch.float16): Cost(30, 2.5, 0, True),
    ("depthwise", torch.bfloat16): Cost(57, 2.5, 0, True),
    ("conv", torch.float16): Cost(2.5, 5, 80, False),
    ("conv", torch.bfloat16): Cost(2.5, 9, 80, False),
}
# Of the depthwise convolution, when two rows share what they load.
_SHARED_ROWS = 0.75


def cycles(t: Tile, cost: Cost, programs: int, depth: int) -> float:
    """What the busiest multiprocessor should need for a product with ``depth`` values to sum."""
    blocks = t.blocks
    steps = blocks_of(depth, blocks["BK"])
    left = cost.left * (_SHARED_ROWS if blocks.get("ROWS", 1) > 1 else 1.0)
    if cost.copies:
        left *= max(1.0, WARP_ROWS * t.warps / blocks["BM"])
    rows = blocks["BM"] * blocks.get("ROWS", 1)
    columns = blocks["BN"] * blocks.get("COLS", 1)
    return MODEL.cycles(_product(t, replace(cost, left=left), rows, columns, steps), programs)


def _product(t: Tile, cost: Cost, rows: int, columns: int, steps: int) -> Work:
    """One program's product: rows x columns sums in so many steps of BK values."""
    k, threads = t.blocks["BK"], WARP * t.warps
    sums, held = rows * columns / threads, rows * k / threads
    step = cost.step + cost.left * held + rows * columns * k / MODEL.products / t.warps
    loaded = 2 * (rows + columns) * k
    return Work(
        instructions=steps * step + cost.out * sums,
        waits=steps / t.stages,
        bytes=steps * loaded,
        warps=t.warps,
        registers=_REGISTERS + sums + _HELD * held,
        shared=t.stages * loaded,
    )


def product_programs(t: Tile, y: FeatureMap) -> int:
    """How many programs make an output y of ``product``, or of a kernel that has neither ROWS nor COLS."""
    places = y.images * blocks_of(y.height, t.blocks.get("ROWS", 1)) * y.width
    columns = t.blocks["BN"] * t.blocks.get("COLS", 1)
    return blocks_of(places, t.blocks["BM"]) * blocks_of(y.channels, columns)


def product_tiles(source: str, y: FeatureMap, depth: int) -> list[Tile]:
    """Tiles of ``product`` for an output y and ``depth`` channels of its input, best first."""
    if y.dtype != torch.float32 and source != "pointwise":
        found = _computed(y, rows=(1, 2))
        return _ranked(found, _COSTS[source, y.dtype], y, depth)
    if y.dtype == torch.float32:
        plain = list(_FLOAT32)
    else:
        plain = _ranked(_plain(y), _COSTS[source, y.dtype], y, depth)
    return [tile(t.warps, t.stages, **t.blocks, ROWS=1, COLS=1) for t in plain]


def hidden_programs(t: Tile, y: FeatureMap) -> int:
    """How many programs of ``hidden`` make an output y."""
    return y.images * blocks_of(y.height, t.blocks["BAND"]) * blocks_of(y.channels, t.blocks["BN"])


def hidden_tiles(x: FeatureMap, y: FeatureMap, stride: int) -> list[Tile]:
    """Tiles of ``hidden`` for an input x and an output y, best first."""

    def band(m: int) -> int:
        """The rows of a program that makes m pixels at once: all, or all but the first and the last."""
        return y.height if x.height * x.width <= m else min(y.height, max(1, (m // x.width - 2) // stride))

    if x.dtype == torch.float32:
        # The last one for where both others spill on sm_90, by no rule that we know: of MobileNetV2's
        # launches that of 96 channels to 576 with stride 2.
        sizes = ((4, 32), (4, 16), (8, 32))
        return [tile(w, 1, BM=m, BN=m, BK=32, BAND=band(_FLOAT32_BAND)) for w, m in sizes]
    most = round_up_to_power(x.height * x.width)
    found = [
        tile(warps, stages, BM=m, BN=n, BK=k, BAND=band(m))
        for m, warps in ((64, 4), (128, 4), (128, 8), (256, 8))
        for n in _widths(y.channels, 16, 32, 64)
        for k, stages in ((32, 3), (64, 2), (128, 2))
        if (m == 64 or m <= most)
        and k <= round_up_to_power(x.channels, 32)
        and m * n <= _HIDDEN_VALUES * WARP * warps
    ]
    cost = _COSTS["pointwise", x.dtype]

    def estimate(t: Tile) -> float:
        # The product, several times, and behind a barrier the convolution of what it made.
        m, n, band = t.blocks["BM"], t.blocks["BN"], t.blocks["BAND"]
        widen = _product(t, cost, m, n, blocks_of(x.channels, t.blocks["BK"]))
        there = blocks_of(min(x.height, band * stride + 2) * x.width, m)
        back = blocks_of(band * y.width, m)
        convolution = _AROUND_DEPTHWISE + _DEPTHWISE * m * n / (WARP * t.warps)
        work = replace(
            widen,
            instructions=there * widen.instructions + back * convolution,
            waits=there * widen.waits + back + 2,
            bytes=there * (widen.bytes + 2 * m * n) + back * 9 * 2 * m * n,
        )
        return MODEL.cycles(work, hidden_programs(t, y))

    return sorted(found, key=estimate)[:_KEPT]


def conv_tiles(y: FeatureMap, channels: int, *, taps: int = 9, before: int = 0) -> list[Tile]:
    """Tiles for a sum over the taps of ``channels`` and ``before`` other channels, best first."""
    if y.dtype == torch.float32:
        return list(_FLOAT32)
    narrow = round_up_to_power(channels)
    found = [t for t in _plain(y) if t.blocks["BK"] <= narrow]
    if narrow == 16:
        found = [tile(4, 4, BM=m, BN=n, BK=16) for m in (64, 128) for n in _widths(y.channels, 32, 64)]
    return _ranked(found, _COSTS["conv", y.dtype], y, before + taps * channels)


# Products of float32 run on the ordinary units and need twice the registers.
_FLOAT32 = (
    tile(4, 2, BM=32, BN=64, BK=32),
    tile(4, 2, BM=32, BN=32, BK=32),
    tile(4, 1, BM=16, BN=32, BK=32),
    tile(4, 1, BM=16, BN=16, BK=16),
    tile(2, 1, BM=16, BN=16, BK=16),
    tile(8, 1, BM=32, BN=32, BK=16),
)


def _widths(channels: int, *sizes: int) -> list[int]:
    """The sizes that are no larger than so many channels need."""
    most = round_up_to_power(channels)
    return [n for n in sizes if n <= most] or [most]


def _plain(y: FeatureMap) -> list[Tile]:
    """For a left factor that is read as it is."""
    return [
        *(tile(4, 3, BM=16, BN=n, BK=k) for n in _widths(y.channels, 16, 32, 64) for k in (64, 128)),
        *(tile(4, 3, BM=32, BN=n, BK=64) for n in _widths(y.channels, 32, 64)),
        *(tile(4, 3, BM=64, BN=n, BK=32) for n in _widths(y.channels, 32, 64, 128)),
        *(tile(4, 2, BM=64, BN=n, BK=64) for n in _widths(y.channels, 64, 128)),
        *(tile(8, 3, BM=128, BN=n, BK=32) for n in _widths(y.channels, 64, 128)),
        *(tile(8, 3, BM=64, BN=n, BK=32) for n in _widths(y.channels, 256) if n == 256),
        *(tile(8, 2, BM=128, BN=n, BK=32) for n in _widths(y.channels, 256) if n == 256),
    ]


def _computed(y: FeatureMap, rows: Iterable[int]) -> list[Tile]:
    """For a left factor that is made in registers: a warp for every 16 rows, so that none is made twice."""
    found = []
    for shared in rows:
        for warps, widths in ((1, (16, 32)), (2, (32, 64)), (4, (32, 64, 128)), (8, (64, 128, 256))):
            for whole in _widths(y.channels, *widths):
                # Three quarters of it in three blocks, where that is enough.
                n, columns = (whole // 4, 3) if whole >= 64 and y.channels <= whole // 4 * 3 else (whole, 1)
                registers = WARP_ROWS * shared * n * columns // WARP
                if registers > MODEL.sums:
                    continue
                # What does not spill, by trying.
                shallow = registers >= MODEL.sums // 4 * 3 or (shared == 2 and whole == 64 and warps < 8)
                for k in (16,) if shallow else (16, 32):
                    found.append(tile(warps, 2, BM=WARP_ROWS * warps, BN=n, BK=k, ROWS=shared, COLS=columns))
    return found


def _ranked(found: Sequence[Tile], cost: Cost, y: FeatureMap, depth: int) -> list[Tile]:
    """The best ones, and last the one with the fewest registers, which fits any GPU in any precision."""

    def registers(t: Tile) -> float:
        return t.blocks["BM"] * t.blocks["BN"] / t.warps * t.blocks.get("ROWS", 1) * t.blocks.get("COLS", 1)

    least = min(found, key=lambda t: (registers(t), t.blocks["BK"]))
    best = sorted(found, key=lambda t: cycles(t, cost, product_programs(t, y), depth))
    kept = best[:_KEPT]
    return kept if least in kept else [*kept[:-1], least]
