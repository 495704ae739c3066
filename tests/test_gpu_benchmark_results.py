"""bench/gpu: what is kept on disk whatever happens, and what is said of it."""

import math
from pathlib import Path

import pytest

from bench import readme
from bench.gpu import chart, targets
from bench.gpu.report import missing, report, wrong
from bench.gpu.results import _MEASURING, SECTIONS, Results, blame, fingerprint, read

ROOT = Path(__file__).resolve().parent.parent


def environment(**changes):
    return {
        "device": "NVIDIA Test 9000", "torch": "2.13.0", "triton": "3.7.0", "cuda": "13.0",
        "commit": "0123456789abcdef", "changed_files": [], "sources": "1",
    } | changes  # fmt: skip


def test_results_go_on_where_they_ended(tmp_path):
    results = Results(tmp_path / "new" / "folder", environment())
    results.begin("parity", "a")
    assert read(results.path)["now"] == ["parity", "a"]
    results.add("parity", "a", [{"ok": True}])
    assert read(results.path)["now"] is None
    again = Results(results.path.parent, environment(commit="another", changed_files=[" M README.md"]))
    assert again.data["parity"] == {"a": [{"ok": True}]}
    assert again.data["environment"]["commit"] == "another"
    assert set(SECTIONS) <= set(again.data)
    assert [path.name for path in results.path.parent.iterdir()] == ["gpu.json"]


@pytest.mark.parametrize("change", [{"device": "another"}, {"sources": "2"}, {"torch": "2.14.0"}])
def test_results_of_another_environment_are_kept_apart(tmp_path, change):
    for i in range(3):
        Results(tmp_path, environment(sources=str(i) * 9)).add("parity", f"key {i}", [])
    found = Results(tmp_path, environment(**change))
    assert found.data["parity"] == {}
    found.save()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "gpu.1.json",
        "gpu.2.json",
        "gpu.3.json",
        "gpu.json",
    ]
    assert [list(read(tmp_path / f"gpu.{n}.json")["parity"]) for n in (1, 2, 3)] == [
        ["key 0"],
        ["key 1"],
        ["key 2"],
    ]


@pytest.mark.parametrize("content", [b"", b'{"parity": {', b"[]", b"\xff", b'{"environment": 3}'])
def test_a_file_that_is_something_else_is_left_alone(tmp_path, content):
    (tmp_path / "gpu.json").write_bytes(content)
    results = Results(tmp_path, environment())
    results.save()
    assert (tmp_path / "gpu.1.json").read_bytes() == content
    assert read(results.path) is not None


def test_what_is_written_is_read_again(tmp_path):
    results = Results(tmp_path, environment())
    rounds, message = [1.5, 2e-5, -3], "shape [ 1, 2 ] [\n 3 ]"
    results.add("speed", "s0 1", {"rounds_ms": {"a": rounds}, "refused": {"compile": message}})
    assert results.path.read_text().count("\n") < 40  # a line for each figure
    row = read(results.path)["speed"]["s0 1"]
    assert row == {"rounds_ms": {"a": rounds}, "refused": {"compile": message}}
    with pytest.raises(ValueError, match="JSON"):  # which has no NaN; the file stays as it was
        results.add("speed", "s1 1", {"ms": {"effv2": math.nan}})
    assert list(read(results.path)["speed"]) == ["s0 1"]


def test_a_step_that_ended_its_process(tmp_path):
    results = Results(tmp_path, environment())
    assert not blame(results.path, "SIGSEGV")  # between steps
    results.add("speed", "s0 1", {"ms": {"effv2": 1.0}, "faster_than": {"eager": 3.0}})
    for step, key in (("parity", "a block"), ("tuned", "s0 1"), ("compile", "s0 1"), ("speed", "s1 1")):
        results = Results(tmp_path, environment())
        results.begin(step, key)
        assert blame(results.path, "SIGSEGV")
        assert read(results.path)["now"] is None
    data = read(results.path)
    assert data["tuned"] == {"s0 1": "SIGSEGV"}
    assert data["speed"]["s0 1"]["refused"] == {"compile": "SIGSEGV"}
    assert data["speed"]["s0 1"]["ms"] == {"effv2": 1.0}
    assert wrong(data) == [
        "a block (a block): SIGSEGV", "speed of s1 1: SIGSEGV", "tuned of s0 1: SIGSEGV",
    ]  # fmt: skip


def test_sources_are_told_apart(tmp_path):
    (tmp_path / "effv2_kernels" / "triton" / "tuned").mkdir(parents=True)
    (tmp_path / "bench" / "gpu").mkdir(parents=True)
    for name in (*_MEASURING, "report"):
        (tmp_path / "bench" / "gpu" / f"{name}.py").write_text("")
    kernel, tuned = (tmp_path / "effv2_kernels" / "triton" / name for name in ("ffn.py", "tuned/h200.json"))
    seen = [fingerprint(tmp_path)]
    for path, text in ((kernel, "a"), (kernel, "b"), (tuned, "{}"), (tmp_path / "bench/gpu/timing.py", "a")):
        path.write_text(text)
        assert fingerprint(tmp_path) not in seen
        seen.append(fingerprint(tmp_path))
    (tmp_path / "bench" / "gpu" / "report.py").write_text("a")
    (tmp_path / "effv2_kernels" / "_native.so").write_text("a")
    assert fingerprint(tmp_path) == seen[-1]


def figure(ms, faster, variant, batch, **more):
    times = {"effv2": ms} | {name: ms * ratio for name, ratio in faster.items()}
    achieved = {
        "bytes_per_second": 1e12 / ms,
        "flop_per_second": 1e12 / ms,
        "share_of_ceiling": 0.25 / ms,
        "ceilings": {"bytes": 4e12, "flops": 8e14},
    }
    row = {"ms": times, "faster_than": faster, "achieved": achieved, "refused": {}, "tuned": True}
    return row | {"variant": variant, "batch": batch} | more


def scaled(threads, ms):
    times = {"effv2": ms, "eager": 12.0}
    row = {"variant": "s0", "batch": 1, "threads": threads, "isa": "avx2", "ms": times}
    return row | {"faster_than_eager": 12.0 / ms}


def measured():
    """All kinds of rows: met, missed, without torch.compile, refused, wrong, not asked, not measured."""
    block = {"what": "s0-ffn-32", "dtype": "fp16", "bound": 5e-3, "error": 1.5e-3, "failure": "", "ok": True}
    network = block | {"what": "s0", "bound": 2e-2, "error": 4e-3}
    rows = [block, network, network | {"what": "s0, graph", "bound": 0.0, "error": 0.0}]
    faster = {"eager": 12.0, "eager graph": 3.0}
    wanted = [targets.speed_key(v, b) for b in targets.BATCHES for v in targets.VARIANTS]
    return {
        "environment": environment(),
        "parity": {str(i): [row] for i, row in enumerate(rows)},
        "speed": {
            "s0 1": figure(0.19, faster | {"compile": 2.5}, "s0", 1),
            "s1 1": figure(0.30, faster | {"compile": 1.9}, "s1", 1),
            "s2 1": figure(0.50, faster, "s2", 1),
            "l 1": figure(0.90, faster, "l", 1, refused={"compile": "RuntimeError: no"}),
            "s0 32": figure(1.0, faster | {"compile": 9.0}, "s0", 32, failure="differs from eager by 0.5"),
            "s0 8": figure(0.40, faster | {"compile": 1.7}, "s0", 8),
        },
        "tuned": {},
        "untuned": {"s0 1": 0.25, "s1 1": "OutOfMemoryError: CUDA out of memory"},
        "tile_ms": {
            "product a": {"BM=16": 0.1, "BM=32": 0.2},
            "product b": {"BM=16": 0.4, "BM=32": 0.1},
            "mean": {"BP=16": 0.1},
        },
        "cpu": {
            "s0 1 1": scaled(1, 4.0),
            "s0 1 2": scaled(2, 2.0),
            "s0 1 4": scaled(4, 1.0) | {"failure": "differs from eager by 0.5"},
            "l 1 1": {"failure": "UnavailableError: no compiled module"},
        },
        "wanted": {"parity": ["0", "1", "2", "late"], "speed": wanted, "compile": wanted, "tuned": []},
    }


def test_the_table():
    text = report(measured())
    line = {row[0] + row[1]: row for row in map(str.split, text.splitlines()) if len(row) == 12}
    assert line["S01"] == [
        "S0",
        "1",
        "0.190",
        "0.250",
        "12.00x",
        "3.00x",
        "2.50x",
        "2.00x",
        "yes",
        "5263",
        "5.3",
        "132%",
    ]
    assert line["S11"][6:9] == ["1.90x", "2.00x", "NO"]
    assert line["S21"][6:9] == ["-", "1.80x", "-"]
    assert line["L1"][6:9] == ["refused", "1.50x", "-"]
    assert line["S032"][2:] == ["-", "-", "-", "-", "-", "1.50x", "-", "-", "-", "-"]  # wrong: no figure
    assert line["S08"][6:9] == ["1.70x", "-", "-"]
    assert line["L256"][2:9] == ["-", "-", "-", "-", "-", "1.30x", "-"]
    assert (
        text.splitlines()[0] == "NVIDIA Test 9000, torch 2.13.0, triton 3.7.0, cuda 13.0, commit 0123456789ab"
    )
    assert "parity: 3 of 3 comparisons within their bounds" in text
    assert "fp16: largest relative L2 1.5e-03 of a block, 4.0e-03 of a network" in text
    assert "WRONG speed of s0 32: differs from eager by 0.5" in text
    assert "not done yet, parity: late" in text
    assert "S0, batch 1, at most 0.20 ms: 0.190, met" in text
    assert "copying 4000 GB/s, fp16 products 800 TFLOP/s" in text
    assert "what is asked is asked of an NVIDIA H200" in text
    assert "the first tile of a launch takes 2.00 times as long as the best one" in text
    assert "(geometric mean of 2 launches), at most 4.00 times: product b" in text
    assert "CPU (avx2), fp32, 224x224" in text
    assert text.splitlines()[-2:] == [
        "S0         1        1  4.00     1.00x       3.00x",
        "S0         1        2  2.00     2.00x       6.00x",
    ]
    assert "WRONG cpu of l 1 1: UnavailableError: no compiled module" in text


def test_the_table_of_the_readme(tmp_path):
    """The right figures alone, in the order of batches; what was not measured is a dash."""
    file = tmp_path / "README.md"
    file.write_text("before\n<!-- gpu:begin -->\nold\n<!-- gpu:end -->\nafter\n")
    readme.put_between(file, chart.MARKS, chart.table(measured()))
    lines = file.read_text().splitlines()
    assert (lines[0], lines[-1]) == ("before", "after")
    assert "old" not in lines
    assert lines[4:11] == [
        "| times faster than | PyTorch eager | eager in a CUDA graph | torch.compile | our ms | images/s "
        "| GB/s | TFLOP/s | of ceiling |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| S0, batch 1 | 12.00x | 3.00x | 2.50x | 0.190 | 5,263 | 5263 | 5.3 | 132% |",
        "| S1, batch 1 | 12.00x | 3.00x | 1.90x | 0.300 | 3,333 | 3333 | 3.3 | 83% |",
        "| S2, batch 1 | 12.00x | 3.00x | - | 0.500 | 2,000 | 2000 | 2.0 | 50% |",
        "| L, batch 1 | 12.00x | 3.00x | - | 0.900 | 1,111 | 1111 | 1.1 | 28% |",
        "| S0, batch 8 | 12.00x | 3.00x | 1.70x | 0.400 | 20,000 | 2500 | 2.5 | 62% |",
    ]
    assert "NVIDIA Test 9000, 224x224, fp16" in lines[-3]
    (tmp_path / "other.md").write_text("no marks")
    with pytest.raises(SystemExit, match="has no <!-- gpu:begin -->"):
        readme.put_between(tmp_path / "other.md", chart.MARKS, "new")


def test_times_before_tuning(tmp_path):
    data = {"untuned": {"s0 1": 0.1234, "mobilenetv2_140 8": 0.5, "s0 256": "RuntimeError: no memory"}}
    assert chart.untuned_table(data).splitlines() == [
        "| images | S0 | MobileNetV2 x1.4 |",
        "| ---: | ---: | ---: |",
        "| 1 | 0.123 | - |",
        "| 8 | - | 0.500 |",
    ]


def test_pages_say_what_was_measured():
    (shipped,) = (ROOT / "bench" / "results").glob("nvidia-*.json")
    data = read(shipped)
    for page, marks, table in (
        ("README.md", chart.MARKS, chart.table),
        ("docs/speed.md", chart.UNTUNED_MARKS, chart.untuned_table),
    ):
        text = (ROOT / page).read_text(encoding="utf-8")
        assert table(data) == text.partition(f"{marks[0]}\n")[2].partition(f"\n{marks[1]}")[0], page


def test_nothing_is_judged_that_was_not_measured():
    data = measured()
    rows = {(t["variant"], t["batch"], t["what"]): t for t in targets.judged(data["speed"])}
    assert len(rows) == 24
    times, most = "times faster than torch.compile", "milliseconds at most"
    assert rows["s0", 1, times] | {"found": 2.5, "met": True} == rows["s0", 1, times]
    assert rows["s1", 1, times] | {"found": 1.9, "met": False, "asked": 2.0} == rows["s1", 1, times]
    assert all(
        rows[key]["met"] is None
        for key in rows
        if key not in {("s0", 1, times), ("s1", 1, times), ("s0", 1, most)}
    )
    data["speed"]["s0 1"]["ms"]["effv2"] = 0.21
    assert "S0, batch 1, at most 0.20 ms: 0.210, MISSED" in report(data)
    del data["speed"]["s0 1"]
    assert "S0, batch 1, at most 0.20 ms: not measured" in report(data)


def test_what_is_left_is_named():
    data = measured()
    left = missing(data)
    assert left["speed"] == [key for key in data["wanted"]["speed"] if key not in data["speed"]]
    # Those that were refused or wrong are not tried again.
    assert left["torch.compile"][:3] == ["s2 1", "s1 32", "s2 32"]
    assert "not done yet, torch.compile: s2 1, s1 32, s2 32, l 32, s0 256, s1 256, and 5 more" in report(data)
    empty = {"environment": environment(), **{name: {} for name in SECTIONS}}
    assert "parity: 0 of 0" in report(empty)
