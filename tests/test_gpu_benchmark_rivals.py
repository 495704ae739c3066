"""bench/gpu: pairs beside torch.compile in processes of their own, which take turns on the GPU."""

import json
import signal
import sys
import threading
import time
import types
from pathlib import Path

import pytest
from gpu_results import ENVIRONMENT

pytest.importorskip("triton")

from bench.gpu import run_all, speed
from bench.gpu.results import hand_over, read, take_over, write
from bench.gpu.turns import Turns

ROOT = Path(__file__).resolve().parent.parent
PAIRS = ["s0 1", "s0 32", "l 1", "l 32"]

# A worker that knows every pair, and takes a while for one with torch.compile, or dies.
FAKE_WORKER = """
import json, os, signal, sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from bench.gpu import worker
from bench.gpu.results import Results, has_rival

def main(arguments):
    wanted = json.loads(arguments[0])
    results = Results(Path(wanted["out"]), {environment!r})
    if wanted["shared"] is None:
        results.data["wanted"] = {{"compile": {pairs!r} if wanted["compile"] else []}}
        for key in {pairs!r}:
            results.data["speed"].setdefault(key, {{"ms": {{"effv2": 1.0}}, "tuned": True}})
            results.data["tuned"][key] = 0.5
        if wanted["cpu"] and not wanted["own"]:
            results.data["cpu"]["s0 1 1"] = {{"ms": {{"effv2": 4.0}}}}
        results.save()
        return 0
    key = f"{{wanted['variants'][0]}} {{wanted['batches'][0]}}"
    if has_rival(results.data["speed"][key]):
        return 0
    with open(Path(wanted["shared"], "log"), "a") as log:
        log.write(json.dumps(["begins", key, results.data["tuned"], sorted(results.data["speed"])]) + "\\n")
    results.begin("compile", key)
    time.sleep({seconds})
    if key in {dying!r}:
        os.kill(os.getpid(), signal.SIGSEGV)
    results.data["compile_seconds"][key] = 90.0
    with open(Path(wanted["shared"], "log"), "a") as log:
        log.write(json.dumps(["ends", key]) + "\\n")
    results.add("compile", key, {{"ms": {{"effv2": 1.0, "compile": 2.5}}, "tuned": True}})
    return 0

worker.main = main
sys.exit(worker.live())
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    worker = tmp_path / "worker.py"
    monkeypatch.setattr(run_all, "WORKER", worker)
    monkeypatch.setattr(run_all, "_GLANCE", 0.05)
    monkeypatch.setattr(run_all, "report", lambda data: "a table")
    before = signal.getsignal(signal.SIGTERM)

    def run(*options, seconds=0.0, dying=()):
        worker.write_text(
            FAKE_WORKER.format(
                root=str(ROOT), environment=ENVIRONMENT, pairs=PAIRS, seconds=seconds, dying=dying
            )
        )
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / "log").write_text("")
        assert run_all.main(["--out", str(tmp_path / "out"), *options]) == 0
        log = [json.loads(line) for line in (tmp_path / "out" / "log").read_text().splitlines()]
        return read(tmp_path / "out" / "gpu.json"), log

    yield run
    signal.signal(signal.SIGTERM, before)


def compiled(data):
    return [key for key in PAIRS if "compile" in data["speed"][key].get("ms", {})]


def test_every_pair_is_measured_in_a_process_of_its_own(run):
    data, log = run("--beside", "2")
    assert compiled(data) == PAIRS
    assert data["compile_seconds"] == dict.fromkeys(PAIRS, 90.0)
    assert data["cpu"] == {"s0 1 1": {"ms": {"effv2": 4.0}}}
    # Each knows its own pair, and the important come first.
    begins = [entry[1:] for entry in log if entry[0] == "begins"]
    assert sorted(begins) == sorted([key, {key: 0.5}, [key]] for key in PAIRS)
    assert {key for key, *_ in begins[:2]} == {"s0 1", "s0 32"}


def test_no_more_run_beside_each_other_than_asked(run):
    _, log = run("--beside", "1", seconds=0.2)
    assert [entry[:2] for entry in log] == [[what, key] for key in PAIRS for what in ("begins", "ends")]


@pytest.mark.alone
def test_they_run_beside_each_other(run):
    _, log = run("--beside", "4", seconds=5)
    assert [entry[0] for entry in log] == ["begins"] * 4 + ["ends"] * 4


def test_none_without_torch_compile(run):
    data, log = run("--no-compile")
    assert compiled(data) == log == []
    assert data["cpu"]


def test_one_that_dies_costs_itself(run):
    data, _ = run("--beside", "2", dying=("s0 32",))
    assert compiled(data) == ["s0 1", "l 1", "l 32"]
    assert data["speed"]["s0 32"]["refused"] == {"compile": "the process ended with SIGSEGV"}
    assert data["speed"]["s0 32"]["ms"] == {"effv2": 1.0}
    data, log = run("--beside", "2")
    assert log == []  # it is not tried again


@pytest.mark.alone
def test_the_time_is_kept_and_the_next_call_goes_on(run, monkeypatch):
    monkeypatch.setattr(run_all, "_GRACE", 0.5)
    monkeypatch.setattr(run_all, "_START", 0.5)
    start = time.monotonic()
    data, log = run("--beside", "3", "--no-cpu", "--seconds", "6", seconds=60)
    assert time.monotonic() - start < 12
    assert compiled(data) == []
    assert len(log) == 3
    assert all("refused" not in data["speed"][key] for key in PAIRS)  # they had no time, that is all
    data, _ = run("--beside", "3")
    assert compiled(data) == PAIRS


def test_what_a_process_has_left_is_kept(tmp_path):
    data = {
        "environment": ENVIRONMENT,
        "speed": {"s0 1": {"ms": {"effv2": 1.0}}},
        "tuned": {"s0 1": 0.5, "l 1": 1},
    }
    hand_over(data, "s0 1", tmp_path / "pair")
    found = read(tmp_path / "pair" / "gpu.json")
    assert (found["speed"], found["tuned"]) == ({"s0 1": {"ms": {"effv2": 1.0}}}, {"s0 1": 0.5})
    row = {"ms": {"effv2": 1.0, "compile": 2.0}}
    more = {"compile_seconds": {"s0 1": 90.0}, "tile_ms": {"a launch": {"BM=16": 0.5}}}
    write(tmp_path / "pair" / "gpu.json", found | {"speed": {"s0 1": row}, **more})
    hand_over(data, "s0 1", tmp_path / "pair")
    take_over(data, tmp_path / "pair")
    assert data["speed"]["s0 1"] == row
    assert {section: data[section] for section in more} == more
    assert data["tuned"] == {"s0 1": 0.5, "l 1": 1}
    # Not what was measured with other code.
    hand_over(
        {**data, "environment": ENVIRONMENT | {"torch": "2.14.0"}, "speed": {}}, "s0 1", tmp_path / "pair"
    )
    assert "speed" not in read(tmp_path / "pair" / "gpu.json")
    take_over(data, tmp_path / "nowhere")
    assert data["speed"]["s0 1"] == row


class Other:
    """Another process, as far as locks go: another thread with files of its own."""

    def __init__(self, folder, how):
        self.turns, self.has, self.may_end = Turns(folder), threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self._take, args=(how,))
        self.thread.start()

    def _take(self, how):
        with getattr(self.turns, how)():
            self.has.set()
            self.may_end.wait(60)

    def end(self):
        self.may_end.set()
        self.thread.join(60)


@pytest.mark.parametrize(
    ("first", "second", "waits"),
    [
        ("gpu", "gpu", True),
        ("gpu", "compiling", False),
        ("compiling", "compiling", False),
        ("compiling", "gpu", False),
        ("compiling", "alone", True),
        ("gpu", "alone", True),
        ("alone", "gpu", True),
        ("alone", "compiling", True),
        ("alone", "alone", True),
    ],
)
def test_turns(tmp_path, first, second, waits):
    one = Other(tmp_path, first)
    assert one.has.wait(60)
    two = Other(tmp_path, second)
    assert two.has.wait(0.3 if waits else 60) == (not waits)
    one.end()
    assert two.has.wait(60)
    two.end()


def test_a_turn_within_a_turn(tmp_path):
    turns = Turns(tmp_path)
    with turns.compiling(), turns.gpu(), turns.gpu():
        pass
    with turns.alone(), turns.gpu(), turns.compiling():
        other = Other(tmp_path, "gpu")
        assert not other.has.wait(0.2)
    assert other.has.wait(60)
    other.end()
    with Turns(None).alone(), Turns(None).gpu():
        pass


def test_torch_compile_times_its_kernels_in_turns(tmp_path, monkeypatch):
    class Benchmarker:
        def benchmark_gpu(self, run, rep=1):
            return run(rep)

    module = types.SimpleNamespace(benchmarker=Benchmarker())
    monkeypatch.setitem(sys.modules, "torch._inductor.runtime.benchmarking", module)
    turns = Turns(tmp_path)
    other = Other(tmp_path, "gpu")
    assert other.has.wait(60)
    with speed._timing_in_turns(turns):
        threading.Timer(0.2, other.end).start()
        start = time.monotonic()
        assert module.benchmarker.benchmark_gpu(lambda rep: rep + 1, rep=2) == 3
        assert time.monotonic() - start > 0.1
    assert module.benchmarker.benchmark_gpu(lambda rep: rep, rep=5) == 5
    assert "benchmark_gpu" not in vars(module.benchmarker)
    del module.benchmarker  # another version of PyTorch
    with speed._timing_in_turns(turns):
        pass
