"""bench/gpu of the CUDA kernels: which of their outputs are right, and what is timed beside what.

Triton's kernels in their interpreter stand for those of CUDA.
"""

import json
from types import SimpleNamespace

import pytest
import torch
from checks import one_torch_thread, seeded
from gpu_clock import GpuClock
from models import Spec

pytest.importorskip("triton")

from bench.gpu import cuda_parity, cuda_speed, speed, timing
from bench.gpu.targets import MODELS, VARIANTS
from effv2_kernels import shapes, sources
from effv2_kernels.reference import Architecture
from effv2_kernels.triton import kernels as triton_kernels

CPU = torch.device("cpu")
TINY = Spec("tiny", Architecture((8, 8, 16, 16), (1, 0, 0, 0), 2, 0), img_size=32)


@pytest.fixture(autouse=True)
def quiet_pytorch():
    with one_torch_thread():
        yield


# --- Parity -------------------------------------------------------------------------------------------------


class Joined:
    """Stands for the one launch: the launches one behind the other."""

    bytes, control_bytes = 0, 8

    def __init__(self, plan):
        self.plan, self.tiles = plan, plan.tiles
        self.change = lambda y: y

    def run(self, x, arena, control):
        return [self.change(y) for y in self.plan.run(x)]


@pytest.fixture
def stand_ins(monkeypatch):
    made = []

    def join(plan, device):
        made.append(Joined(plan))
        return made[-1]

    monkeypatch.setattr(cuda_parity, "kernels", lambda: triton_kernels)
    monkeypatch.setattr(cuda_parity, "fits", lambda launch, tile: tile in launch.tiles[:2])
    monkeypatch.setattr(cuda_parity, "one_launch", join)
    return made


def test_everything_is_checked():
    keys = [check.key for group in cuda_parity.groups(VARIANTS, CPU) for check in group.checks]
    assert len(keys) == len(set(keys))
    assert keys[:3] == [f"cuda s0 fp16 batch {batch}" for batch in (1, 8, 32)]
    for dtype in ("fp16", "bf16"):
        assert {
            f"cuda {name} {dtype} batch {batch}" for name in cuda_parity.shapes_of(MODELS) for batch in (1, 3)
        } <= set(keys)
        assert {f"cuda {v} {dtype} batch {batch}" for v in MODELS for batch in (1, 8, 32)} <= set(keys)
        assert f"cuda optimize mobilenetv2_100 {dtype} batch 1" in keys
    few = [check.key for group in cuda_parity.groups(("s1",), CPU) for check in group.checks]
    assert not any("mobilenet" in key or "s0" in key for key in few)


def test_a_block_in_all_its_tiles(stand_ins):
    (row,) = cuda_parity.check_block("a-block", shapes.head(24, 10, 3, 2), "fp16", 2, CPU)
    assert row.ok, row
    assert (row.backend, row.row()["backend"]) == ("cuda", "cuda")
    assert row.what == "a-block, 3 choices of tiles"  # the first ones, and another of each launch


def test_a_block_of_which_one_tile_is_wrong(stand_ins, monkeypatch):
    launch = type(
        triton_kernels.pack(block := shapes_block(), torch.float16, CPU).plan(image_of(block), "ieee")[0]
    )
    original = launch.run

    def run(self, tile, memory):
        original(self, tile, memory)
        if tile is self.tiles[1]:
            memory[self.output].view(-1)[0] += 1

    monkeypatch.setattr(launch, "run", run)
    (row,) = cuda_parity.check_block("a-block", shapes.head(24, 10, 3, 2), "fp16", 2, CPU)
    assert not row.ok
    assert "relative L2" in row.failure
    assert " | " in row.failure  # the tiles


def shapes_block():
    return shapes.random_block(shapes.head(24, 10, 3, 2), seeded(1))


def image_of(block):
    return cuda_parity.FeatureMap(2, 3, 2, 24, torch.float16)


def test_a_block_without_a_kernel(monkeypatch):
    def kernels():
        raise ImportError("no module _cuda")

    monkeypatch.setattr(cuda_parity, "kernels", kernels)
    (row,) = cuda_parity.check_block("a-block", shapes.head(24, 10, 3, 2), "fp16", 2, CPU)
    assert (row.ok, row.failure) == (False, "ImportError: no module _cuda")


def test_ways_are_those_that_can_be_used():
    ways = [
        SimpleNamespace(way=way, launches=launches) for way, launches in (("a", [1]), ("b", []), ("c", [2]))
    ]
    packed = SimpleNamespace(alternatives=lambda image, precision: ways)
    assert cuda_parity.ways(packed, None) == {"a": [1], "c": [2]}


def rows_of_tiny():
    model = TINY.build(seeded(70))
    network = sources.read(model)
    exact = model.double()
    return list(cuda_parity.check_launches("tiny", network, "fp16", 1, (32, 32), CPU, exact))


def test_a_network_and_its_one_launch(stand_ins):
    launches, one, bits, again = rows_of_tiny()
    assert launches.ok, launches
    assert one.ok
    assert (bits.ok, bits.bound, bits.error) == (True, 0.0, 0.0)
    assert (again.ok, again.what) == (True, "tiny, one launch again")


def test_one_launch_that_is_off_by_a_bit(stand_ins, monkeypatch):
    monkeypatch.setattr(
        Joined, "run", lambda self, *_: [torch.nextafter(y, y + 1) for y in self.plan.run(_[0])]
    )
    launches, one, bits, again = rows_of_tiny()
    assert launches.ok
    assert one.ok
    assert not bits.ok
    assert "allowed are 0e+00" in bits.failure
    assert again.ok


# --- Speed --------------------------------------------------------------------------------------------------


class Optimised:
    """Stands for a model by one backend."""

    def __init__(self, model, wrong=0.0):
        self.model, self.wrong = model, wrong
        decisions = [SimpleNamespace(backend="cuda", way=way) for way in ("whole", "whole", "")]
        self.engine = SimpleNamespace(choice_for=lambda x: (None, None), decisions=lambda *_: decisions)

    def __call__(self, x):
        return self.model(x) * (1 + self.wrong)


@pytest.fixture
def models(monkeypatch):
    model = TINY.build(seeded(71)).half()
    found = {"triton": Optimised(model), "cuda": Optimised(model, 0.001)}
    monkeypatch.setattr(speed, "optimised", lambda variant, device, backend="triton": found[backend])
    monkeypatch.setattr(
        speed, "inputs_of", lambda batch, device: [TINY.images(seeded(i), batch).half() for i in (1, 2)]
    )
    monkeypatch.setattr(cuda_speed, "Graph", lambda plan, x: SimpleNamespace(replay=lambda x: [model(x)]))
    monkeypatch.setattr(timing, "MIN_ROUNDS", 3)
    monkeypatch.setattr(timing, "kernels", lambda run, inputs: [("product", 2.5)])
    GpuClock(monkeypatch).tick(monkeypatch)
    return found


def test_measure(models, monkeypatch):
    row = cuda_speed.measure("s0", 2, CPU, seconds=0, tuned=True, triton_tuned=False)
    assert list(row["ms"]) == ["cuda", "cuda graph", "triton"]
    assert row["times_triton"] == {"cuda": 1.0, "cuda graph": 1.0}
    assert row["refused"] == {
        "cuda one launch": "some blocks have no kernel that can be a part of one launch"
    }
    assert row["blocks"] == {"cuda whole": 2, "cuda": 1}
    assert row["images_per_second"] == 2000
    assert (row["tuned"], row["triton_tuned"]) == (True, False)
    assert 0 < row["difference_from_triton"]["cuda"] < speed.DIFFERENCE
    assert "failure" not in row
    json.dumps(row, allow_nan=False)
    assert cuda_speed.untuned("s0", 2, CPU, seconds=0) == {"cuda": 1.0, "cuda graph": 1.0}


def test_measure_of_one_launch(models):
    one = SimpleNamespace(run=lambda x: [models["cuda"](x) * 1.1])
    models["cuda"].engine.choice_for = lambda x: (None, SimpleNamespace(plan=None, one=one, why=""))
    row = cuda_speed.measure("s0", 1, CPU, seconds=0, tuned=True, triton_tuned=True)
    assert row["refused"]["cuda one launch"].startswith("differs from Triton's outputs by")
    assert "cuda one launch" not in row["ms"]
    assert "failure" not in row  # which is not what users call here


def test_outputs_that_are_wrong_are_no_figure(models):
    models["cuda"].wrong = 0.1
    row = cuda_speed.measure("s0", 1, CPU, seconds=0, tuned=True, triton_tuned=True)
    assert row["failure"].startswith("differs from Triton's outputs by")


def test_the_ways_of_bottlenecks(stand_ins, monkeypatch):
    shape = shapes.ffn(8, 16, 3, 3)
    found = {"s0-ffn": shape, "s0-head": shapes.head(24, 10, 3, 2)}
    monkeypatch.setattr(cuda_speed, "shapes_of", lambda variants: found)
    monkeypatch.setattr(cuda_speed, "milliseconds", lambda launch, tile: 1.0 + (tile is launch.tiles[0]))
    made = cuda_speed.ffn_ways("s0", 2, CPU)
    assert list(made) == ["s0-ffn"]
    ways = made["s0-ffn"]
    assert set(ways) == {"cuda", "triton"}
    assert (ways["cuda"]["ms"], ways["cuda"]["untuned_ms"]) == (3.0, 4.0)  # one launch has one tile
    assert ways["triton"]["ms"] == 4.0
    json.dumps(made)
