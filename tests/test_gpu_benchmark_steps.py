"""bench/gpu: the order of the steps, what time allows, and what a step that fails costs."""

import pytest
import torch

pytest.importorskip("triton")

from gpu_steps import RIGHT, Fakes

from bench.gpu import speed, worker
from bench.gpu.parity import Parity
from bench.gpu.report import wrong
from bench.gpu.results import blame, read


@pytest.fixture
def fakes(monkeypatch, tmp_path):
    return Fakes(monkeypatch, tmp_path)


PAIRS = ["s0 1", "l 1", "s0 32", "l 32"]


def tuned(key):
    return [f"untuned {key}", f"tune {key}"]


CHECKS = [f"parity {key}" for key in ("a1", "a2", "b1", "b2")]


def test_the_important_comes_first(fakes):
    done, data = fakes.run()
    first = [step for key in ("s0 1", "s0 32") for step in (*tuned(key), f"plain {key}")]
    tunes = [step for key in ("l 1", "l 32") for step in tuned(key)]
    plain = [f"plain {key}" for key in ("l 1", "l 32")]
    rivals = [f"rival {key}" for key in ("s0 1", "s0 32", "l 1", "l 32")]
    assert done == [*CHECKS[:2], *first, *CHECKS[2:], *tunes, *plain, *rivals, "cpu s0 1 2"]
    assert list(data["parity"]) == ["a1", "a2", "b1", "b2"]
    assert data["speed"]["l 32"]["ms"]["compile"] == 2.0
    assert data["compile_seconds"] == dict.fromkeys(PAIRS, 90.0)
    assert sorted(data["wanted"]["compile"]) == sorted(PAIRS)
    assert data["untuned"] == dict.fromkeys(PAIRS, 1.5)
    assert data["tile_ms"] == {f"a launch of {key}": {"BM=16": 0.1} for key in PAIRS}
    assert data["cpu"] == {"s0 1 2": {"ms": {"effv2": 4.0, "eager": 20.0}}}
    assert fakes.run()[0] == []  # all is known


def test_torch_compile_is_for_processes_of_its_own(fakes):
    done, data = fakes.run(shared=None)
    assert not any(step.startswith("rival") for step in done)
    assert data["wanted"]["compile"] == ["s0 1", "s0 32", "l 1", "l 32"]
    assert "cpu s0 1 2" in done


def test_what_comes_after_our_own_figures_is_named(fakes):
    done, data = fakes.run(shared=None, own=True)
    assert {step.split()[0] for step in done} == {"parity", "untuned", "tune", "plain"}
    assert data["wanted"]["cpu"] == ["s0 1 2"]
    assert sorted(data["wanted"]["compile"]) == sorted(PAIRS)
    assert fakes.run(shared=None)[0] == ["cpu s0 1 2"]


def test_what_does_not_fit_is_done_by_the_next_call(fakes):
    limits = {"seconds": 250, "parity_seconds": 25, "tune_seconds": 30}
    first, data = fakes.run(**limits)
    # Each part ends with the first step that ends after its time. For the rival of s0 32, which needs 90 s as
    # far as is known, too little is left.
    ahead = [*tuned("s0 1"), "plain s0 1", *tuned("s0 32"), "plain s0 32", "parity b1"]
    assert first == [*CHECKS[:2], *ahead, "plain l 1", "plain l 32", "rival s0 1", "cpu s0 1 2"]
    assert list(data["tuned"]) == ["s0 1"]
    assert "b2" not in data["parity"]
    assert [key for key, row in data["speed"].items() if "compile" in row["ms"]] == ["s0 1"]
    second, data = fakes.run(**limits)
    again = ["tune s0 32", "plain s0 32"]  # whose tiles are others now
    assert second == [*again, "parity b2", *tuned("l 1"), "rival s0 32"]
    assert list(data["tuned"]) == ["s0 1", "s0 32"]
    for _ in range(8):
        _, data = fakes.run(**limits)
    assert {key for key, row in data["speed"].items() if "compile" in row["ms"]} == set(PAIRS)
    assert set(data["tuned"]) == set(PAIRS)
    assert all(row["tuned"] for row in data["speed"].values())


def test_torch_compile_is_not_begun_without_time_for_it(fakes):
    first, _ = fakes.run(seconds=79, parity_seconds=25, tune_seconds=0)
    assert not any(step.startswith("rival") for step in first)
    assert {step for step in first if step.startswith("plain")} == {f"plain {key}" for key in PAIRS}


def test_tuning_leaves_time_for_the_rival(fakes):
    """Or there is a figure without it."""
    fakes.takes["tune"] = 45.0
    first, _ = fakes.run(seconds=100, parity_seconds=0, tune_seconds=48)
    assert first[:4] == [*tuned("s0 1"), "plain s0 1", "plain s0 32"]


def test_the_time_counts_from_the_start_of_the_command(fakes):
    """Of which this process knows only when it is over."""
    done, _ = fakes.run(seconds=1e4, ends=15.0, compile=False, tune_seconds=0)
    assert done == ["parity a1", "parity a2"]


def test_a_rival_that_was_refused_is_not_tried_again(fakes):
    fakes.fails = {"rival s0 1": RuntimeError("in a kernel of Inductor")}
    done, data = fakes.run()
    assert done.count("rival s0 1") == done.count("plain s0 1") == 1
    assert data["speed"]["s0 1"]["refused"] == {"compile": "RuntimeError: in a kernel of Inductor"}
    assert data["speed"]["s0 1"]["ms"]["effv2"] == 1.0


def test_what_json_cannot_hold_is_a_failure_of_its_step(fakes, monkeypatch):
    def measure(*_, **__):
        return {"ms": {"effv2": float("nan")}, "refused": {}, "warnings": []}

    monkeypatch.setattr(speed, "measure", measure)
    _, data = fakes.run(compile=False)
    assert data["speed"]["l 32"]["failure"].startswith("ValueError: Out of range float values")


def test_a_figure_is_taken_again_once_its_tiles_are_measured(fakes):
    done, data = fakes.run(compile=False, tune_seconds=0)
    first, rest = ([f"plain {variant} {batch}" for batch in (1, 32)] for variant in ("s0", "l"))
    assert done == [*CHECKS[:2], *first, *CHECKS[2:], *rest, "cpu s0 1 2"]
    assert data["untuned"] == {}
    assert data["wanted"]["tuned"] == data["wanted"]["compile"] == []
    done, data = fakes.run(compile=False, variants=("l",), batches=(32,))
    assert done == [*tuned("l 32"), "plain l 32"]
    assert [key for key, row in data["speed"].items() if row["tuned"]] == ["l 32"]


def test_one_with_torch_compile_is_tuned_before(fakes):
    fakes.takes["tune"] = 70.0  # longer than there is for tuning ahead
    done, _ = fakes.run(tune_seconds=60, parity_seconds=0)
    assert done.index("tune l 32") < done.index("rival l 32")
    assert {step for step in done if step.startswith("rival")} == {f"rival {key}" for key in PAIRS}
    assert not any(step.startswith("parity") for step in done)


def test_what_fails_costs_nothing_else(fakes):
    fakes.fails = {
        "parity a1": RuntimeError("out of memory"),
        "tune s0 1": RuntimeError("too little free memory"),
        "plain l 1": torch.OutOfMemoryError("CUDA out of memory"),
        "rival s0 32": RuntimeError("in a kernel of Inductor"),
        "untuned l 32": torch.OutOfMemoryError("CUDA out of memory"),
        "cpu s0 1 2": RuntimeError("no compiled module"),
    }
    done, data = fakes.run()
    # Parity, tuning, figures, those with torch.compile of what had one, and the CPU.
    assert len(done) == 4 + 8 + 4 + 3 + 1
    assert data["parity"]["a1"][0]["failure"] == "RuntimeError: out of memory"
    assert data["tuned"]["s0 1"] == "RuntimeError: too little free memory"
    assert data["speed"]["s0 1"]["tuned"] is False
    assert data["speed"]["l 1"] == {"failure": "OutOfMemoryError: CUDA out of memory"}
    assert data["speed"]["s0 32"]["refused"] == {"compile": "RuntimeError: in a kernel of Inductor"}
    assert data["speed"]["s0 32"]["ms"]["effv2"] == 1.0
    assert data["untuned"]["l 32"] == "OutOfMemoryError: CUDA out of memory"
    said = wrong(data)
    assert "tuned of s0 1: RuntimeError: too little free memory" in said
    assert "untuned of l 32: OutOfMemoryError: CUDA out of memory" in said
    assert data["cpu"]["s0 1 2"] == {"failure": "RuntimeError: no compiled module"}
    assert fakes.run()[0] == []  # failures are not tried again


def test_a_step_that_finds_nothing_is_over(fakes):
    """What ends the process later is not its fault."""
    fakes.run(seconds=60.0, tune_seconds=12.0)
    data = read(fakes.folder / "gpu.json")
    assert "tune s0 1" in fakes.done
    assert "s0 1" not in data["tuned"]
    assert data["now"] is None
    assert not blame(fakes.folder / "gpu.json", "the process ended with SIGSEGV")


def test_a_gpu_that_is_lost_ends_the_process(fakes, monkeypatch):
    """After an illegal address every later call fails: none of those may be recorded."""
    fakes.rows = [Parity("a block", "fp16", 1, (7, 7), 5e-3, failure="AcceleratorError: illegal address")]

    def lost(work):
        raise worker.GpuLost

    monkeypatch.setattr(worker.Work, "still_there", lost)
    with pytest.raises(worker.GpuLost):
        fakes.run()
    assert fakes.done == ["parity a1"]
    assert list(read(fakes.folder / "gpu.json")["parity"]) == ["a1"]
    fakes.rows = [RIGHT]
    assert fakes.run()[0][0] == "parity a2"
