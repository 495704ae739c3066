"""The GPU engine with kernels that only tests have: whole blocks in plain PyTorch, on the CPU."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from checks import NETWORK_BOUND, assert_close, exact_network, one_torch_thread, seeded
from gpu_clock import GpuClock
from models import SMALL, TINY

from effv2_kernels import sources
from effv2_kernels.gpu import ceilings, kernels, tuning
from effv2_kernels.gpu.engine import Engine
from effv2_kernels.gpu.launch import FeatureMap, Launch, tile
from effv2_kernels.gpu.packing import Packed
from effv2_kernels.gpu.resources import Resources
from effv2_kernels.reference import run_block

CPU = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class WholeBlock(Launch):
    """compute: the block's output (N, C, H, W), or (N, classes), for its input."""

    compiler: ClassVar[str] = "pytorch-1"
    shipped: ClassVar[Path] = Path(__file__).with_name("tuned")
    interpreted: ClassVar[bool] = True

    compute: Any

    @property
    def name(self):
        return "whole_block"

    def run(self, tile, memory):
        values = self.values(memory)
        x, m = values["x"], self.arguments["x"]
        if x.ndim == 1:
            x = x.view(m.images, m.height, m.width, m.channels).permute(0, 3, 1, 2)
        y = self.compute(x)
        values["y"].copy_((y if y.ndim == 2 else y.permute(0, 2, 3, 1)).flatten())

    def trace(self, tile, memory):
        self.run(tile, memory)

    def compile(self, tile):
        return Resources(1, 0, 0)

    @classmethod
    def compile_missing(cls, pairs):
        pass


class InPyTorch(Packed):
    def __init__(self, compute):
        self.compute = compute

    def plan(self, x, precision):
        c, h, w = self.compute(torch.zeros(1, x.channels, x.height, x.width))[..., None, None].shape[1:4]
        y = FeatureMap(x.images, h, w, c, x.dtype)
        tiles = [tile(1), tile(2)]
        return [WholeBlock(self.compute, arguments={"x": x, "y": y}, tiles=tiles, output=y, macs=0)]


def scaled(feature):
    scale, shift = (v.view(1, -1, 1, 1) for v in (feature.scale, feature.shift))
    return lambda x: x * scale + shift


IN_PYTORCH = SimpleNamespace(
    refusal=lambda block: None,
    pack=lambda block, dtype, device: InPyTorch(lambda x: run_block(block, x)),
    pack_feature=lambda feature, device: InPyTorch(scaled(feature)),
)


@pytest.fixture(autouse=True)
def quiet_pytorch():
    with one_torch_thread():
        yield


def check(network, x, of_backend):
    engine = Engine(network, of_backend, torch.float32, CPU)
    for y, expected in zip(engine.run(x), exact_network(network, x), strict=True):
        assert_close(y, expected, NETWORK_BOUND)
    return [launch.name for block in engine.block_launches(*x.shape[2:]) for launch, *_ in block]


def test_the_engine_takes_kernels_of_any_backend():
    network = sources.read(TINY.build(seeded(80)))
    found = check(network, TINY.images(seeded(81), 2), IN_PYTORCH)
    assert found == ["whole_block"] * len(network.blocks)


def test_feature_maps():
    norms = (True, False, True, False)
    network = sources.read(SMALL[0].build(seeded(82), features_only=True, num_classes=0, feature_norms=norms))
    found = check(network, SMALL[0].images(seeded(83)), IN_PYTORCH)
    assert found == ["whole_block"] * (len(network.blocks) + 2)


def test_launches_of_several_backends_in_one_plan():
    """Block by block, each reads what the other wrote."""
    pytest.importorskip("triton")
    network = sources.read(TINY.build(seeded(84)))
    first, second = IN_PYTORCH, kernels.kernels_of("triton")

    def pack(block, dtype, device):
        chosen = (first, second)[network.blocks.index(block) % 2]
        return chosen.pack(block, dtype, device)

    found = check(network, TINY.images(seeded(85), 2), SimpleNamespace(pack=pack))
    assert found.count("whole_block") == -(-len(network.blocks) // 2)
    assert len(set(found)) > 2


class OtherBlock(WholeBlock):
    compiler: ClassVar[str] = "other-2"

    @property
    def name(self):
        return "other_block"


def test_each_backend_compiles_and_remembers_its_own(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("EFFV2_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(tuning, "milliseconds", lambda launch, tile: 1.0 / tile.warps)
    compiled = []
    for launches in (WholeBlock, OtherBlock):
        monkeypatch.setattr(launches, "compile_missing", compiled.append)
    m = FeatureMap(1, 2, 3, 4, torch.float32)
    kinds = [WholeBlock, OtherBlock, WholeBlock]
    made = [
        kind(None, arguments={"x": m, "size": i}, tiles=[tile(1), tile(2)], output=m, macs=0)
        for i, kind in enumerate(kinds)
    ]
    with caplog.at_level(logging.WARNING):
        times = tuning.measure(made, tuning.TileTables("A GPU"), lambda what, share: None)
    assert not caplog.records
    assert times == {launch.key: {str(t): 1.0 / t.warps for t in launch.tiles} for launch in made}
    assert [[(made.index(launch), t.warps) for launch, t in pairs] for pairs in compiled] == [
        [(0, 1), (0, 2), (2, 1), (2, 2)],
        [(1, 1), (1, 2)],
    ]
    kept = {path.name.split("-", 3)[3]: json.loads(path.read_text()) for path in tmp_path.iterdir()}
    assert {name: set(table) for name, table in kept.items()} == {
        "pytorch-1.json": {made[0].key, made[2].key},
        "other-2.json": {made[1].key},
    }
    chosen = tuning.choose(made, tuning.TileTables("A GPU"))
    assert [t.warps for t, _ in chosen] == [2, 2, 2]


def test_ceilings_are_medians_of_runs_with_a_cold_cache(monkeypatch):
    gpu, calls = GpuClock(monkeypatch), []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)

    def clear():
        gpu.now += 0.5
        calls.append("clear")

    def run():
        # The first ones have a low clock.
        gpu.now += 2.0 if len(calls) > 20 else 3.0
        calls.append("run")

    assert ceilings._median(run, clear) == pytest.approx(2.0)
    once = 3.5
    assert calls.count("clear") == 5 + int(100 / once)
    assert calls.count("run") == 1 + 5 + int(25 / once) + int(100 / once)
    assert calls[-2 * int(100 / once) :] == ["clear", "run"] * int(100 / once)
