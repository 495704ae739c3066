"""Tiles that are measured: chosen, kept on disk, found again; and what happens where any of that fails."""

import contextlib
import json
import logging

import pytest
import torch
from checks import seeded
from gpu_clock import GpuClock

pytest.importorskip("triton")

import effv2_kernels
from bench.gpu import parity
from bench.gpu.models import shapes_of
from bench.gpu.targets import BATCHES, MODELS
from effv2_kernels import shapes, tune
from effv2_kernels.errors import ModelError, UnavailableError
from effv2_kernels.gpu import kept, timing, tuning
from effv2_kernels.gpu.launch import FeatureMap
from effv2_kernels.gpu.resources import Resources
from effv2_kernels.triton.kernels import pack
from effv2_kernels.triton.launch import Launch

GPU = "NVIDIA Test 9000"


@pytest.fixture
def launches():
    block = pack(shapes.random_block(shapes.ffn(24, 72, 5, 7), seeded(1)), torch.float16, "cpu")
    return block.by_pixels(FeatureMap(2, 5, 7, 24, torch.float16), "ieee")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("EFFV2_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    """Every tile compiles; the third one of each launch is the fastest, and the first does not fit."""
    measured = []

    def compiled(launch, tile):
        return None if tile is launch.tiles[0] else Resources(64, 0, 1024)

    def milliseconds(launch, tile):
        measured.append((launch.name, tile))
        return 1.0 if tile is launch.tiles[2] else 2.0

    monkeypatch.setattr(Launch, "compile", compiled)
    monkeypatch.setattr(Launch, "compile_missing", lambda pairs: None)
    monkeypatch.setattr(tuning, "milliseconds", milliseconds)
    return measured


def silent(what, share):
    assert 0 <= share <= 1


def test_unmeasured_the_first_that_fits(launches):
    for launch, (tile, made) in zip(launches, tuning.choose(launches, tuning.TileTables(GPU)), strict=True):
        assert tile is launch.tiles[1]
        assert made.registers == 64


def test_a_tile_that_does_not_spill_is_better_than_an_earlier_one_that_does(launches, monkeypatch):
    stacks = dict(zip(launches[0].tiles, [8, 8, 0, 0], strict=False))
    monkeypatch.setattr(Launch, "compile", lambda launch, tile: Resources(64, stacks.get(tile, 4), 1024))
    assert tuning.best_unmeasured(launches[0])[0] is launches[0].tiles[2]
    monkeypatch.setattr(
        Launch, "compile", lambda launch, tile: Resources(64, 8 + launch.tiles.index(tile), 1024)
    )
    assert tuning.best_unmeasured(launches[0])[0] is launches[0].tiles[0]


def test_no_tile_fits(launches, monkeypatch):
    monkeypatch.setattr(Launch, "compile", lambda launch, tile: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: GPU)
    with pytest.raises(UnavailableError, match=rf"none of the \d+ tiles of product fits .*\({GPU}\)"):
        tuning.best_unmeasured(launches[0])


def test_measured_once_and_found_again(launches, no_gpu, folder):
    found = tuning.measure(launches, tuning.TileTables(GPU), silent)
    assert found == {
        launch.key: {str(tile): 1.0 if tile is launch.tiles[2] else 2.0 for tile in launch.tiles[1:]}
        for launch in launches
    }
    assert len(no_gpu) == sum(len(launch.tiles) - 1 for launch in launches)  # but the one that does not fit
    (file,) = folder.iterdir()
    assert file.name.startswith(f"nvidia-test-9000-{effv2_kernels.__version__}-triton-3")
    again = tuning.TileTables(GPU)
    for launch, (tile, _) in zip(launches, tuning.choose(launches, again), strict=True):
        assert tile is launch.tiles[2]
    no_gpu.clear()
    assert tuning.measure(launches, again, silent) == {}
    assert not no_gpu
    assert tuning.TileTables("another GPU").find(launches[0]) is None


def test_another_size_is_another_choice(launches):
    tables = tuning.TileTables(GPU)
    tuning.measure(launches, tables, silent)
    block = pack(shapes.random_block(shapes.ffn(24, 72, 5, 7), seeded(1)), torch.float16, "cpu")
    for x in (FeatureMap(3, 5, 7, 24, torch.float16), FeatureMap(2, 5, 8, 24, torch.float16)):
        assert tables.find(block.by_pixels(x, "ieee")[0]) is None
    assert tables.find(block.by_pixels(FeatureMap(2, 5, 7, 24, torch.float16), "ieee")[0]) is not None


def test_another_batch_is_another_choice_for_every_kernel():
    """Also for those that learn of it by the number of their programs alone."""
    for shape in shapes.family_shapes().values():
        one, two = (list(parity.launches_of(shape, "fp16", [batch])) for batch in (1, 2))
        assert not {launch.key for launch in one} & {launch.key for launch in two}, str(shape)


def test_what_another_process_measured_is_not_lost(launches):
    ours, theirs = tuning.TileTables(GPU), tuning.TileTables(GPU)
    tuning.measure(launches[:1], theirs, silent)
    tuning.measure(launches[1:], ours, silent)
    tables = tuning.TileTables(GPU)
    assert all(tables.find(launch) is not None for launch in launches)


def test_shipped_tiles_give_way_to_measured_ones(launches, tmp_path, monkeypatch):
    shipped = tmp_path / "shipped"
    shipped.mkdir()
    tiles = {launch.key: str(launch.tiles[3]) for launch in launches}
    (shipped / "nvidia-test-9000.json").write_text(json.dumps(tiles))
    monkeypatch.setattr(Launch, "shipped", shipped)
    assert all(tuning.TileTables(GPU).find(launch) is launch.tiles[3] for launch in launches)
    tuning.TileTables(GPU).add({launches[0]: launches[0].tiles[2]})
    tables = tuning.TileTables(GPU)
    assert [launch.tiles.index(tables.find(launch)) for launch in launches] == [2, 3]


def test_every_shipped_tile_is_a_candidate_of_a_launch():
    """Who changes a kernel or its candidates measures again, or takes its tiles out."""
    files = list(Launch.shipped.glob("*.json"))
    assert files
    found = {
        launch.key: {str(tile) for tile in launch.tiles}
        for shape in shapes_of(MODELS).values()
        for launch in parity.launches_of(shape, "fp16", BATCHES)
    }
    for file in files:
        for key, tile in json.loads(file.read_text()).items():
            assert tile in found.get(key, ()), f"{file.name}: {tile} of {key}"


def test_a_gpu_with_the_same_chip_begins_with_its_tiles(launches, tmp_path, monkeypatch, no_gpu):
    """Until it is tuned itself."""
    shipped = tmp_path / "shipped"
    shipped.mkdir()
    tiles = {launch.key: str(launch.tiles[3]) for launch in launches}
    (shipped / "nvidia-h100-80gb-hbm3.json").write_text(json.dumps(tiles))
    monkeypatch.setattr(Launch, "shipped", shipped)
    tables = tuning.TileTables("NVIDIA H200")
    assert all(tables.find(launch) is launch.tiles[3] for launch in launches)
    tuning.measure(launches, tables, silent)
    assert no_gpu
    assert all(tables.find(launch) is launch.tiles[2] for launch in launches)


@pytest.mark.parametrize("content", [b"", b"{", b"[1, 2]", b'{"a": 1}', b"\xff\xfe\x00", b"null"])
def test_a_corrupt_file_is_ignored_and_replaced(launches, folder, content, caplog):
    path = tuning.TileTable(GPU, Launch).path
    folder.mkdir()
    path.write_bytes(content)
    tables = tuning.TileTables(GPU)
    with caplog.at_level(logging.WARNING):
        assert tables.find(launches[0]) is None
    assert "ignored" in caplog.text
    assert str(path) in caplog.text
    tuning.measure(launches, tables, silent)
    caplog.clear()
    assert tuning.TileTables(GPU).find(launches[0]) is launches[0].tiles[2]
    assert not caplog.records


def test_a_tile_that_exists_no_more_is_ignored(launches):
    path = tuning.TileTable(GPU, Launch).path
    path.parent.mkdir()
    path.write_text(json.dumps({launches[0].key: "BM=1 BN=2 warps=3 stages=4"}))
    assert tuning.TileTables(GPU).find(launches[0]) is None


def test_a_folder_that_cannot_be_written(launches, folder, caplog):
    folder.write_text("a file where the folder should be")
    tables = tuning.TileTables(GPU)
    with caplog.at_level(logging.WARNING):
        tuning.measure(launches, tables, silent)
    assert "cannot be kept" in caplog.text
    assert "EFFV2_CACHE_DIR" in caplog.text
    assert tables.find(launches[0]) is launches[0].tiles[2]  # in this process


def test_out_of_memory_keeps_what_was_measured(launches, monkeypatch):
    def milliseconds(launch, tile):
        if launch is launches[1]:
            raise UnavailableError("too little free memory")
        return 1.0

    monkeypatch.setattr(tuning, "milliseconds", milliseconds)
    with pytest.raises(UnavailableError, match="too little free memory"):
        tuning.measure(launches, tuning.TileTables(GPU), silent)
    tables = tuning.TileTables(GPU)
    assert tables.find(launches[0]) is not None
    assert tables.find(launches[1]) is None


def test_buffers_that_do_not_fit_into_memory(launches, monkeypatch):
    def full(m):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(timing, "_random", full)
    with pytest.raises(UnavailableError, match=r"too little free memory to time product: it needs \d+ MB"):
        timing.milliseconds(launches[0], launches[0].tiles[0])


def test_what_cannot_be_tuned():
    model = torch.nn.Linear(2, 2).eval()
    with pytest.raises(ModelError, match="nothing that was optimised"):
        tune(model, torch.zeros(1, 3, 32, 32))


def test_a_model_on_the_cpu_has_nothing_to_tune():
    part = shapes.random_block(shapes.ffn(8, 16, 4, 4), seeded(2))
    fast = effv2_kernels.model.OptimizedModel(
        effv2_kernels.blocks.Network((part,), ("",), (effv2_kernels.blocks.Feature(0),))
    )
    with pytest.raises(UnavailableError, match="on the cpu, where there is nothing to choose"):
        tune(fast, torch.zeros(1, 8, 4, 4))
    with pytest.raises(UnavailableError, match=r"give the one at '0'"):
        tune(torch.nn.Sequential(fast), torch.zeros(1, 8, 4, 4))
    assert fast(torch.zeros(1, 8, 4, 4))[0].shape == (1, 8, 4, 4)


class FakeGPU(GpuClock):
    """One on which every launch takes a quarter of a millisecond, and which is its own and only graph."""

    def __init__(self, monkeypatch):
        super().__init__(monkeypatch)
        self.recorded, self.capturing = 0, False
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: self)
        monkeypatch.setattr(timing, "captured", self.captured)

    @contextlib.contextmanager
    def captured(self, graph):
        self.capturing = True
        yield
        self.capturing = False

    def launch(self, *_):
        if self.capturing:
            self.recorded += 1
        else:
            self.now += 0.25

    def replay(self):
        self.now += 0.25 * self.recorded


def test_one_launch_is_timed_in_a_graph_of_many(launches, monkeypatch):
    gpu = FakeGPU(monkeypatch)
    monkeypatch.setattr(timing, "_random", lambda m: None)
    monkeypatch.setattr(Launch, "run", gpu.launch)
    assert timing.milliseconds(launches[0], launches[0].tiles[0]) == pytest.approx(0.25)
    assert gpu.recorded == 4  # one millisecond
    assert gpu.now == pytest.approx(0.25 * (1 + 5) + 7 * 1)


def test_a_graph_that_does_not_fit_into_memory(launches, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(timing, "_random", lambda m: None)
    monkeypatch.setattr(Launch, "run", full)
    with pytest.raises(UnavailableError, match="too little free memory to time product"):
        timing.milliseconds(launches[0], launches[0].tiles[0])


def test_a_user_without_a_home(monkeypatch):
    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("EFFV2_CACHE_DIR")
    monkeypatch.setattr(kept.Path, "home", home)
    assert tuning.TileTable(GPU, Launch).path.parent.name == "effv2_kernels"


def test_what_was_measured_is_there_for_others(launches, monkeypatch):
    table = tuning.TileTable(GPU, Launch)
    table.add({launches[0].key: launches[0].tiles[0]})
    assert table.path.stat().st_mode & 0o777 == 0o644
    before = table.path.read_bytes()

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(kept.os, "replace", fail)
    table.add({launches[1].key: launches[1].tiles[0]})
    assert [path.read_bytes() for path in table.path.parent.iterdir()] == [before]
