"""The order of tiles: beside the times that a GPU has measured, and the model that it comes from."""

import json
import statistics
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("triton")

from bench.gpu import parity
from bench.gpu.models import shapes_of
from bench.gpu.targets import BATCHES, MODELS
from effv2_kernels.triton.gpu import Gpu, Work

MEASURED = Path(__file__).parents[1] / "bench" / "results" / "nvidia-h100-80gb-hbm3.json"

# Ten multiprocessors with simple figures.
GPU = Gpu(
    multiprocessors=10, registers=64 * 1024, shared=64 * 1024, warps=32, programs=8, schedulers=4,
    products=100, dependent=2.0, latency=50, loads=8, sums=128,
)  # fmt: skip
WORK = Work(instructions=1000, waits=10, bytes=800, warps=4, registers=128, shared=8192)


@pytest.fixture(scope="module")
def first_beside_best():
    """By kind of launch, how many times as long as the best measured tile the first one takes."""
    times = json.loads(MEASURED.read_text())["tile_ms"]
    found = {}
    for shape in shapes_of(MODELS).values():
        for launch in parity.launches_of(shape, "fp16", BATCHES):
            measured = times.get(launch.key, {})
            ordered = [measured[str(tile)] for tile in launch.tiles if str(tile) in measured]
            if ordered:
                kind = f"{launch.name} {launch.constants.get('SOURCE', '')}".strip()
                found.setdefault(kind, {})[launch.key] = ordered[0] / min(measured.values())
    return found


def test_the_first_tile_is_about_as_fast_as_the_best_one_of_an_h100(first_beside_best):
    every = [ratio for kind in first_beside_best.values() for ratio in kind.values()]
    assert len(every) >= 550
    assert statistics.geometric_mean(every) <= 1.05
    assert max(every) <= 2.0
    for kind, ratios in first_beside_best.items():
        assert statistics.geometric_mean(ratios.values()) <= 1.11, kind


def test_a_program_alone_takes_its_own_chain():
    assert GPU.cycles(WORK, 1) == 1000 * 2 + 10 * 50
    assert GPU.cycles(WORK, 10) == GPU.cycles(WORK, 1)


def test_programs_beside_each_other_share_the_schedulers():
    # Four of 4 * 32 * 128 registers: more than that wait for their turn.
    assert GPU.cycles(WORK, 40) == 4 * 4 * 1000 / 4
    assert GPU.cycles(WORK, 41) == 2 * (1000 * 2 + 10 * 50)
    assert GPU.cycles(WORK, 160) == 16 * 4 * 1000 / 4


@pytest.mark.parametrize(
    ("limit", "together"),
    [
        ({"registers": 255}, 2),
        ({"registers": 1000}, 2),  # no more than 255 of a thread are registers
        ({"shared": 20000}, 3),
        ({"registers": 16, "warps": 16}, 2),
        ({"registers": 16, "warps": 1, "shared": 0}, 8),
        ({"shared": 100_000}, 1),  # what does not fit at all is ordered as well
    ],
)
def test_what_a_program_takes_decides_how_many_run_at_once(limit, together):
    waiting = replace(WORK, instructions=1.0, waits=100.0, bytes=0.0, **limit)
    alone = 2 + 100 * 50
    assert GPU.cycles(waiting, 10 * together) == alone
    assert GPU.cycles(waiting, 10 * together + 1) == 2 * alone


def test_loads_take_their_time():
    assert GPU.cycles(replace(WORK, bytes=80_000), 20) == 2 * 80_000 / 8
