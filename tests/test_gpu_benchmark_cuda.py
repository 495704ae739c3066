"""bench/gpu of the CUDA kernels, rehearsed without a GPU: the order of their steps, and what is said of them.

test_gpu_benchmark_cuda_programs.py has the programs beside them, and test_gpu_benchmark_cuda_figures.py how
outputs are checked and kernels timed.
"""

import pytest

pytest.importorskip("triton")

from gpu_steps import Fakes

from bench.gpu import (
    chart,
    cuda_parity,
    cuda_report,
    cuda_speed,
    prepared,
    report,
    sanitizer,
    targets,
    wrappers,
)


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
        monkeypatch.setattr(prepared, "load", self.load)
        monkeypatch.setattr(sanitizer, "find", lambda: "/somewhere/compute-sanitizer")
        monkeypatch.setattr(sanitizer, "run", self.sanitize)

    def cuda_groups(self):
        groups = self.groups()
        for group in groups:
            for i, check in enumerate(group.checks):
                group.checks[i] = type(check)(f"cuda {check.key}", check.run)
        return groups

    def load(self, folder, name):
        assert name == prepared.CUDA
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
        options = {"prepared": "a/folder", "cuda_seconds": 1e4, "shared": None}
        options |= {"compile": False, "cpu": False}
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
    def load(folder, name):
        raise prepared.Unusable("_cuda.so cannot be loaded: no libcuda")

    monkeypatch.setattr(prepared, "load", load)
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
        "cuda_untuned of s0 1: RuntimeError: no kernel image",
        "cuda_tuned of l 1: RuntimeError: too little free memory",
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
