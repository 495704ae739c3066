"""bench/gpu of the CUDA kernels, rehearsed without a GPU: the order of their steps, and what each one says.

Triton's kernels in their interpreter stand for those of CUDA, scripts for the programs beside them.
"""

import json
import stat
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from checks import one_torch_thread, seeded
from gpu_clock import GpuClock
from gpu_steps import Fakes
from models import Spec

pytest.importorskip("triton")

from bench.gpu import (
    chart,
    cuda_build,
    cuda_parity,
    cuda_report,
    cuda_speed,
    prepare_cuda,
    report,
    run_all,
    sanitizer,
    speed,
    targets,
    timing,
    wrappers,
)
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


class CudaFakes(Fakes):
    """With those of CUDA."""

    def __init__(self, monkeypatch, folder):
        super().__init__(monkeypatch, folder)
        self.takes |= {"cuda_untuned": 2.0, "cuda_tune": 30.0, "cuda": 5.0, "ffn": 10.0, "memcheck": 50.0}
        self.takes |= {"wrappers": 1.0}
        self.wrong_wrapper, self.loaded = "", []
        monkeypatch.setattr(cuda_parity, "groups", lambda variants, device: self.cuda_groups())
        monkeypatch.setattr(cuda_speed, "untuned", self.cuda_untuned)
        monkeypatch.setattr(cuda_speed, "tune", self.cuda_tune)
        monkeypatch.setattr(cuda_speed, "measure", self.cuda_measure)
        monkeypatch.setattr(cuda_speed, "ffn_ways", self.ffn_ways)
        monkeypatch.setattr(wrappers, "run", self.wrappers)
        monkeypatch.setattr(cuda_build, "load", self.load)
        monkeypatch.setattr(sanitizer, "find", lambda: "/somewhere/compute-sanitizer")
        monkeypatch.setattr(sanitizer, "run", self.sanitize)

    def cuda_groups(self):
        groups = self.groups()
        for group in groups:
            for i, check in enumerate(group.checks):
                group.checks[i] = type(check)(f"cuda {check.key}", check.run)
        return groups

    def load(self, folder):
        self.loaded.append(folder)

    def wrappers(self, program):
        self.take("wrappers", program.name)
        if self.wrong_wrapper:
            return {"tests": {"max": "", "mma": "5 of 32"}, "failure": self.wrong_wrapper}
        return {"tests": {"max": "", "mma": ""}}

    def cuda_untuned(self, variant, batch, device, *, seconds):
        self.take("cuda_untuned", f"{variant} {batch}")
        return {"cuda": 1.5, "cuda graph": 1.75}

    def cuda_tune(self, variant, batch, device, go_on):
        self.take("cuda_tune", f"{variant} {batch}")
        return {f"cuda_ffn of {variant} {batch}": {"64x1": 0.1}} if go_on() else None

    def cuda_measure(self, variant, batch, device, *, seconds, tuned, triton_tuned):
        self.take("cuda", f"{variant} {batch}")
        return figure(variant, batch, tuned=tuned, triton_tuned=triton_tuned)

    def ffn_ways(self, variant, batch, device):
        self.take("ffn", f"{variant} {batch}")
        ways = {"cuda whole": {"ms": 0.25, "untuned_ms": 0.5, "tiles": ["a"]}, "triton": {"ms": 0.3}}
        return {"s0-ffn": ways, "s0-ffn-2": ways | {"cuda in halves": {"ms": 0.125}}}

    def sanitize(self, program, tool, folder):
        self.take(tool, "small")
        return {"seconds": 50.0, "said": "ERROR SUMMARY: 0 errors"}

    def run(self, **changes):
        options = {"cuda": "a/folder", "cuda_seconds": 1e4, "shared": None, "compile": False, "cpu": False}
        return super().run(**{**options, **changes})


def figure(variant, batch, ms=0.5, **more):
    times = {"cuda": ms, "cuda graph": 0.75, "cuda one launch": ms, "triton": 1.0}
    row = {"variant": variant, "batch": batch, "ms": times, "images_per_second": 1e3 * batch / ms}
    row |= {"times_triton": {"cuda": 1 / ms}, "tuned": True, "triton_tuned": True, "refused": {}}
    return row | more


@pytest.fixture
def fakes(monkeypatch, tmp_path):
    return CudaFakes(monkeypatch, tmp_path)


PAIRS = ["s0 1", "l 1", "s0 32", "l 32"]
FIRST = ["s0 1", "s0 32", "l 1", "l 32"]


def cuda_steps(done):
    return [step for step in done if step.split()[0] in ("wrappers", "memcheck", "ffn") or "cuda" in step]


def test_the_wrappers_come_first(fakes):
    done, data = fakes.run(sanitizer="memcheck", tune_seconds=30.0)
    # Checks are named by the fakes, whoever's they are: those of CUDA are in front.
    checks = ["parity a1", "parity a2"]
    untuned = [f"cuda_untuned {key}" for key in ("s0 1", "s0 32")]
    rest = ["parity b1", "parity b2", *(f"cuda_untuned {key}" for key in ("l 1", "l 32"))]
    tuned = [step for key in FIRST for step in (f"cuda_tune {key}", f"cuda {key}")]
    last = ["memcheck small", *(f"ffn {key}" for key in FIRST)]
    expected = ["wrappers wrappers", *checks, *untuned, *rest, *tuned, *last]
    assert done[: len(expected)] == expected
    assert [str(folder) for folder in fakes.loaded] == ["a/folder"] * 2
    assert data["wrappers"]["all"] == {"tests": {"max": "", "mma": ""}}
    assert {"cuda a1", "cuda b2", "a1", "b2"} <= set(data["parity"])
    assert data["cuda_untuned"]["l 32"] == {"cuda": 1.5, "cuda graph": 1.75}
    assert data["tile_ms"]["cuda_ffn of l 32"] == {"64x1": 0.1}
    # Triton's tiles of the first pair were measured behind it: the figure is taken again, with both.
    assert [step for step in done[len(expected) :] if step.startswith("cuda")] == ["cuda s0 1"]
    assert data["cuda"]["s0 1"]["triton_tuned"]
    again, _ = fakes.run(sanitizer="memcheck", tune_seconds=0)
    assert cuda_steps(again) == []


def test_nothing_is_built_on_a_wrong_wrapper(fakes, capsys):
    fakes.wrong_wrapper = "1 of 2 wrappers are wrong: mma"
    done, data = fakes.run(sanitizer="memcheck")
    assert cuda_steps(done) == ["wrappers wrappers"]
    assert {"plain s0 1", "parity b2"} <= set(done)  # Triton's are nobody's fault
    assert fakes.loaded == []
    assert not data["cuda"]
    said = capsys.readouterr().out
    assert said.count("the CUDA kernels are left out: 1 of 2 wrappers are wrong: mma") == 2
    text = report.report(data)
    assert "CUDA wrappers: 1 of 2 do what kernels take them to do" in text
    assert "  mma: 5 of 32" in text
    assert "not run, CUDA parity: cuda a1, cuda a2, cuda b1, cuda b2" in text
    assert "not run, CUDA: s0 1, l 1, s0 32, l 32" in text
    assert "not run, sanitizer: memcheck" in text
    assert "not measured" in text
    assert "NO" not in text.split()
    assert report.wrong(data) == ["wrappers of all: 1 of 2 wrappers are wrong: mma"]
    assert cuda_steps(fakes.run()[0]) == []  # asked once


def test_a_module_that_cannot_be_loaded(fakes, monkeypatch):
    def load(folder):
        raise cuda_build.Unusable("_cuda.so cannot be loaded: no libcuda")

    monkeypatch.setattr(cuda_build, "load", load)
    done, data = fakes.run()
    assert cuda_steps(done) == ["wrappers wrappers"]
    assert data["wrappers"]["all"]["failure"] == "_cuda.so cannot be loaded: no libcuda"


def test_figures_of_cuda_leave_time_for_the_others(fakes):
    limits = {"seconds": 200.0, "cuda_seconds": 60.0, "parity_seconds": 20.0, "tune_seconds": 30.0}
    done, data = fakes.run(**limits)
    assert done[:5] == [
        "wrappers wrappers",
        "parity a1",
        "parity a2",
        "cuda_untuned s0 1",
        "cuda_untuned s0 32",
    ]
    assert done.index("plain s0 1") < len(done)
    assert "CUDA tuning" in report.missing(data)
    for _ in range(8):
        _, data = fakes.run(**limits)
    assert set(data["cuda"]) == set(data["ffn"]) == set(PAIRS)


def test_what_fails_costs_nothing_else(fakes):
    fakes.fails = {
        "cuda_untuned s0 1": RuntimeError("no kernel image"),
        "cuda_tune l 1": RuntimeError("too little free memory"),
        "cuda s0 32": RuntimeError("no kernel image"),
        "ffn l 32": RuntimeError("no kernel image"),
    }
    _, data = fakes.run()
    assert data["cuda_untuned"]["s0 1"] == "RuntimeError: no kernel image"
    assert data["cuda_tuned"]["l 1"] == "RuntimeError: too little free memory"
    assert data["cuda"]["s0 32"] == {"failure": "RuntimeError: no kernel image"}
    assert data["ffn"]["l 32"] == {"failure": "RuntimeError: no kernel image"}
    assert set(data["cuda"]) == set(PAIRS)
    assert report.wrong(data) == [
        "cuda of s0 32: RuntimeError: no kernel image",
        "ffn of l 32: RuntimeError: no kernel image",
    ]
    assert cuda_steps(fakes.run()[0]) == []  # failures are not tried again


def test_without_a_sanitizer(fakes, monkeypatch, capsys):
    monkeypatch.setattr(sanitizer, "find", lambda: None)
    _, data = fakes.run(sanitizer="memcheck")
    assert "memcheck is left out: there is no compute-sanitizer" in capsys.readouterr().out
    assert report.missing(data)["sanitizer"] == ["memcheck"]


def test_processes_beside_torch_compile_leave_cuda_alone(fakes):
    done, data = fakes.run(shared=str(fakes.folder), compile=True)
    assert cuda_steps(done) == []
    assert "cuda" not in data["wanted"]


def program(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.mark.parametrize(
    ("script", "tests", "failure"),
    [
        ("echo 'ok     max'; echo 'ok     a b'", {"max": "", "a b": ""}, None),
        (
            "echo 'ok     max'; echo 'FAILED mma: 5 of 32: 7'; exit 1",
            {"max": "", "mma": "5 of 32: 7"},
            "1 of 2 wrappers are wrong: mma",
        ),
        (
            "echo 'ok     max'; echo 'mma: no kernel image' >&2; exit 2",
            {"max": ""},
            "the wrappers ended with exit code 2: mma: no kernel image",
        ),
        ("exit 0", {}, "the wrappers ended with exit code 0: "),
        ("echo 'ok     max'; exec sleep 60", {"max": ""}, "the wrappers did not end within 0.5 s"),
    ],
)
def test_what_the_wrappers_say(tmp_path, script, tests, failure):
    found = wrappers.run(program(tmp_path / "wrappers", script), seconds=0.5 if "sleep" in script else 30)
    assert found["tests"] == tests
    assert found.get("failure") == failure
    json.dumps(found)


def test_wrappers_that_cannot_be_run(tmp_path):
    found = wrappers.run(tmp_path / "none")
    assert "cannot be run: No such file" in found["failure"]


@pytest.mark.parametrize(
    ("script", "failure"),
    [
        ("echo '========= ERROR SUMMARY: 0 errors'", None),
        (
            "echo '========= ERROR SUMMARY: 2 errors'; exit 3",
            "memcheck found something: ========= ERROR SUMMARY",
        ),
        ("exit 1", "memcheck ended with 1: nothing was said"),
        ("echo begun; sleep 60", "no answer within 0.5 s"),
    ],
)
def test_what_the_sanitizer_says(tmp_path, script, failure):
    seconds = 0.5 if "sleep" in script else 30
    found = sanitizer.run(str(program(tmp_path / "tool", script)), "memcheck", tmp_path, seconds)
    assert (found.get("failure") or found.get("late") or "None").startswith(str(failure))


def test_the_sanitizer_is_told_what_to_watch(tmp_path):
    found = sanitizer.run(str(program(tmp_path / "tool", 'echo "$@"')), "racecheck", tmp_path)
    assert found["said"].startswith(
        "--tool racecheck --kernel-name kernel_substring=effv2 --error-exitcode 3 "
    )
    assert found["said"].endswith(f"bench/gpu/sanitizer.py --cuda {tmp_path}\n")


# --- The kernels in a folder of their own -------------------------------------------------------------------


@pytest.fixture
def build(tmp_path):
    """A folder as prepare_cuda.py fills it, with modules of nothing."""
    suffix = cuda_build.importlib.machinery.EXTENSION_SUFFIXES[0]
    (tmp_path / f"_cuda{suffix}").write_bytes(b"a module")
    (tmp_path / "wrappers").write_bytes(b"")
    cuda_build.describe(tmp_path, capability=90, cuda="13.0")
    return tmp_path


def test_a_folder_that_can_be_used(build):
    assert cuda_build.check(build)["capability"] == 90
    digest = cuda_build.digest(build)
    cuda_build.module_of(build).write_bytes(b"another")
    assert cuda_build.digest(build) != digest
    with pytest.raises(cuda_build.Unusable, match="cannot be loaded"):
        cuda_build.load(build)
    wanted, _ = run_all.parse(["--out", "x", "--cuda", str(build), "--sanitizer", "racecheck"])
    assert (wanted.cuda, wanted.sanitizer) == (str(build), "racecheck")


def test_folders_that_cannot(build, monkeypatch, capsys, tmp_path_factory):
    def refused(folder, *more):
        with pytest.raises(SystemExit) as exit_:
            run_all.parse(["--out", "x", "--cuda", str(folder), *more])
        assert exit_.value.code == 2
        return capsys.readouterr().err

    assert "is no folder of bench/gpu/prepare_cuda.py" in refused(tmp_path_factory.mktemp("empty"))
    with monkeypatch.context() as other:
        other.setattr(cuda_build, "sources", lambda root=None: "0123")
        assert "were compiled from other sources than those of this checkout" in refused(build)
    cuda_build.module_of(build).rename(build / "_cuda.cpython-399-x86_64-linux-gnu.so")
    assert "those in it: _cuda.cpython-399-x86_64-linux-gnu.so" in refused(build)
    with pytest.raises(SystemExit):
        run_all.parse(["--out", "x", "--sanitizer", "memcheck"])
    assert "name their folder with --cuda" in capsys.readouterr().err


def test_sources_of_kernels_are_told_apart(tmp_path):
    assert cuda_build.sources(tmp_path) == ""
    (tmp_path / "csrc" / "cuda").mkdir(parents=True)
    (tmp_path / "csrc" / "cuda" / "a.h").write_text("a")
    first = cuda_build.sources(tmp_path)
    (tmp_path / "csrc" / "cuda" / "a.md").write_text("words")
    assert cuda_build.sources(tmp_path) == first
    (tmp_path / "csrc" / "cuda" / "a.h").write_text("b")
    assert cuda_build.sources(tmp_path) != first


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
    gpu = GpuClock(monkeypatch)

    class Ticking(torch.cuda.Event):  # each turn takes 1 ms
        def record(self):
            gpu.now += 1.0
            super().record()

    monkeypatch.setattr(torch.cuda, "Event", Ticking)
    monkeypatch.setattr(timing, "TURN", 1e-3)
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


# --- What is said of it -------------------------------------------------------------------------------------


def measured():
    rival = {"ms": {"effv2": 1.0, "compile": 2.2}, "faster_than": {"compile": 2.2}, "tuned": True}
    return {
        "speed": {"s0 1": rival, "s1 1": rival, "s0 256": rival, "l 1": rival | {"tuned": False}},
        "cuda": {
            "s0 1": figure("s0", 1),
            "s1 1": figure("s1", 1, ms=0.6),
            "s0 256": figure("s0", 256, ms=1.6),
            "l 1": figure("l", 1),
            "s2 1": figure("s2", 1, failure="differs"),
        },
    }


def found_of(data):
    rows = targets.judged(data["speed"], data["cuda"])
    return {
        (row["variant"], row["batch"], row["what"].removeprefix("CUDA, ")): row
        for row in rows
        if row["what"].startswith("CUDA, ")
    }


def test_targets_of_cuda():
    rows = found_of(measured())
    times = "times faster than torch.compile"
    assert rows["s0", 1, times]["found"] == 4.4  # both beside Triton's, with the same tiles
    assert (rows["s0", 1, times]["asked"], rows["s0", 1, times]["met"]) == (4.0, True)
    assert rows["s1", 1, times]["met"] is False
    assert rows["l", 1, times]["found"] is None  # Triton's tiles were others
    assert rows["s2", 1, times]["found"] is None
    assert rows["s0", 1, "milliseconds at most"]["met"] is False
    assert rows["s0", 256, "images a second, at least"]["met"] is True
    assert rows["s0", 256, "images a second, hoped for"]["met"] is False
    computed = rows["s0", 1, "milliseconds at most"]["estimated"]
    assert 0 < computed == targets.estimated_ms("s0", 1)
    assert rows["s0", 1, times]["estimated"] == pytest.approx(2.2 / computed)
    nothing = found_of({"speed": {}, "cuda": {}})
    assert all(row["found"] is row["met"] is None for row in nothing.values())
    assert len(nothing) == len(rows) == 11


def test_the_table(fakes):
    _, data = fakes.run()
    data |= measured()
    data["cuda_untuned"] = {"s0 1": {"cuda": 0.625}, "s2 32": "RuntimeError: no"}
    text = "\n".join(cuda_report.speed(data))
    assert text in report.report(data)
    line = {row[0] + row[1]: row for row in map(str.split, text.splitlines()) if len(row) == 12}
    assert line["S01"][2:11] == [
        "0.500",
        "0.625",
        "0.750",
        "0.500",
        "2,000",
        "2.00x",
        "4.40x",
        "4.00x",
        "yes",
    ]
    assert line["S11"][10] == "NO"
    assert line["S21"][2:11] == ["-"] * 7 + ["3.00x", "-"]  # wrong: no figure
    assert line["S232"][2:] == ["-"] * 10
    assert "S0, batch 1, CUDA, milliseconds at most, 0.080: 0.500, MISSED (computed: 0.0" in text
    assert "S0, batch 256, CUDA, images a second, at least, 120,000: 160,000, met (computed: " in text
    assert "nothing of that was measured" in text
    (ways,) = (row for row in map(str.split, text.splitlines()) if row[:2] == ["S0", "32"] and len(row) == 6)
    assert ways[2:] == ["0.500", "0.600", "-", "0.375"]


def test_the_table_of_the_readme():
    data = measured() | {"environment": {"device": "NVIDIA Test"}}
    lines = chart.cuda_table(data).splitlines()
    assert lines[2].startswith(
        "| CUDA kernels, times faster than | our Triton kernels | torch.compile | ms |"
    )
    assert lines[4] == "| S0, batch 1 | 2.00x | 4.40x | 0.500 | 0.750 | 0.500 | 2,000 |"
    assert lines[6] == "| L, batch 1 | 2.00x | - | 0.500 | 0.750 | 0.500 | 2,000 |"
    assert chart.cuda_table({"speed": {}}) == ""


# --- Prepared elsewhere -------------------------------------------------------------------------------------


@pytest.fixture
def compilers(monkeypatch):
    """What is run instead of compilers: it leaves the files that they would."""
    commands = []

    def run(command):
        commands.append([str(part) for part in command])
        out = next((part.partition("=")[2] for part in commands[-1] if "LIBRARY_OUTPUT" in part), None)
        if out is not None:
            Path(out, f"_cuda{prepare_cuda.suffix_of(sys.executable)}").write_bytes(b"x" * 100)
        if "-o" in commands[-1]:
            Path(commands[-1][commands[-1].index("-o") + 1]).write_bytes(b"y" * 50)

    monkeypatch.setattr(prepare_cuda, "_run", run)
    monkeypatch.setattr(prepare_cuda, "_release", lambda nvcc: "13.0")
    monkeypatch.setattr(
        prepare_cuda, "suffix_of", lambda python: cuda_build.importlib.machinery.EXTENSION_SUFFIXES[0]
    )
    return commands


def test_prepared(compilers, tmp_path, capsys, monkeypatch):
    pytest.importorskip("pybind11")
    out = tmp_path / "out"
    options = [str(out), "--python", sys.executable, "--nvcc", "nvcc", "--capability", "90"]
    assert prepare_cuda.main(options) == 0
    assert cuda_build.check(out) == {
        "sources": cuda_build.sources(), "capability": 90, "cuda": "13.0",
        "module": cuda_build.module_of(out).name,
    }  # fmt: skip
    assert "0.00 MB  wrappers" in capsys.readouterr().out
    assert "-arch=sm_90" in compilers[-1]
    assert all("-DEFFV2_CUDA_ARCHITECTURES=90" in command for command in compilers if "-S" in command)
    monkeypatch.setattr(prepare_cuda, "MOST_BYTES", 10)
    assert prepare_cuda.main(options) == 1
    assert "more than the 0 MB that are carried" in capsys.readouterr().err


def test_what_to_prepare_with_is_missing(tmp_path, capsys):
    assert prepare_cuda.main([str(tmp_path / "out"), "--python", "/no/python"]) == 2
    assert "/no/python is no Python that runs" in capsys.readouterr().err
    assert prepare_cuda.main([str(tmp_path / "out"), "--nvcc", "/no/nvcc"]) == 2
    error = capsys.readouterr().err
    assert "/no/nvcc is no compiler of NVIDIA's" in error or "no headers" in error
    assert not (tmp_path / "out").exists()
