"""The figures are the right ones, and a wrong result gets none."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from effv2_kernels.benchmarking import (
    OPENVINO,
    Comparison,
    Contestant,
    Entry,
    compare,
    installed,
    pooled,
    read,
    write,
)
from effv2_kernels.benchmarking import interleave as turns
from effv2_kernels.benchmarking.comparison import median_ratio, percentile
from effv2_kernels.benchmarking.contestants import OWN_BOUND, RIVAL_BOUND
from effv2_kernels.benchmarking.report import markdown, one, ratios
from effv2_kernels.benchmarking.targets import Target, speed_targets, table
from effv2_kernels.errors import InputError, ModelError, UnknownNameError
from effv2_kernels.families import short, variant_named
from effv2_kernels.reference import Architecture, EfficientFormerV2
from effv2_kernels.shapes import randomise


@pytest.fixture(scope="module")
def model() -> nn.Module:
    small = EfficientFormerV2(
        Architecture((8, 16, 24, 32), (1, 1, 2, 2), 2, 1), img_size=32, num_classes=10, layer_scale_init=0.3
    )
    randomise(small)
    return small.eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 32, 32)


@pytest.mark.parametrize(
    ("given", "variant", "shown"),
    [
        ("s0", "efficientformerv2_s0", "S0"),
        ("efficientformerv2_l", "efficientformerv2_l", "L"),
        ("100", "mobilenetv2_100", "MobileNetV2 x1.0"),
        ("mobilenetv2_035", "mobilenetv2_035", "MobileNetV2 x0.35"),
        ("110d", "mobilenetv2_110d", "MobileNetV2 x1.1d"),
    ],
)
def test_names_of_models(given: str, variant: str, shown: str) -> None:
    assert variant_named(given) == variant
    assert short(variant) == shown


def test_names_that_no_model_has() -> None:
    assert short("resnet50") == "resnet50"
    with pytest.raises(UnknownNameError, match="unknown model 's3'"):
        variant_named("s3")


def entry(name: str, rounds: tuple[float, ...]) -> Entry:
    return Entry.measured([[seconds] for seconds in rounds], name=name, settings="1.0", error=1e-7)


def comparison(*entries: Entry, batch: int = 1, peak: tuple[float, ...] = (), threads: int = 2) -> Comparison:
    return Comparison(
        model="efficientformerv2_s0",
        batch=batch,
        image_size=(224, 160),
        threads=threads,
        isa="avx2",
        cpu="a processor",
        gflop=0.8,
        entries=entries,
        peak=peak,
        versions={"torch": "2.13.0"},
    )


@pytest.mark.parametrize("count", [1, 2, 7, 100])
def test_percentile_is_numpys(count: int) -> None:
    values = np.random.default_rng().random(count)
    for percent in (0, 10, 50, 90, 99, 100):
        assert percentile(values.tolist(), percent) == pytest.approx(np.percentile(values, percent))


def test_ratio_is_taken_within_rounds() -> None:
    # The machine becomes ten times slower and faster again: no round's ratio changes.
    drift = np.array([1.0, 10.0, 3.0, 1.0, 7.0])
    assert median_ratio((2.0 * drift).tolist(), drift.tolist()) == pytest.approx(2.0)
    # 2, 3 and 0.5, whose median is not the ratio of the medians, 4 / 2
    assert median_ratio([2.0, 9.0, 4.0], [1.0, 3.0, 8.0]) == pytest.approx(2.0)
    assert median_ratio([2.0, 30.0, 4.0], [1.0, 3.0, 2.0]) == pytest.approx(2.0)
    assert median_ratio([4.0, 30.0, 6.0], [1.0, 3.0, 2.0]) == pytest.approx(4.0)


def test_rounds_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        median_ratio([1.0, 2.0, 3.0], [1.0, 2.0])


def test_the_faster_way_of_a_rival_counts() -> None:
    found = comparison(
        entry("effv2", (1.0, 2.0, 1.0)),
        entry("openvino", (1.8, 3.6, 1.8)),
        entry("openvino_streams", (1.5, 3.0, 1.5)),
        batch=16,
    )
    assert found.ratio("openvino") == pytest.approx(1.8)
    assert found.ratio(OPENVINO) == pytest.approx(1.5)
    assert found.ratio("eager") is None
    assert found.seconds_per_image("openvino_streams") == pytest.approx(1.5 / 16)


def test_share_of_peak_is_taken_within_rounds() -> None:
    found = comparison(entry("effv2", (0.01, 0.1, 0.02)), peak=(100.0, 10.0, 50.0))
    assert found.gflops("effv2") == pytest.approx(0.8 / 0.02)
    assert found.share_of_peak("effv2") == pytest.approx(0.8)
    assert comparison(entry("effv2", (0.01,))).share_of_peak("effv2") is None


def test_a_refused_entry_has_no_figures() -> None:
    found = comparison(entry("effv2", (1.0,)), Entry("openvino", refused="wrong result"), peak=(100.0,))
    assert found.ratio("openvino") is None
    assert found.seconds_per_image("openvino") is None
    assert found.gflops("openvino") is None
    assert found.share_of_peak("openvino") is None
    for text in (one(found), ratios([found])):
        assert "No figure for OpenVINO" in text
        assert "wrong result" in text
    # our own entry refused: nothing can be said about the rivals either
    found = comparison(Entry("effv2", refused="wrong result"), entry("openvino", (1.0,)))
    assert found.ratio("openvino") is None
    assert "x" not in markdown([found]).splitlines()[-1].replace("effv2", "")


def test_the_table_of_the_readme() -> None:
    rounds = (2e-3, 2e-3, 2e-3, 2.4e-3)
    found = comparison(
        entry("effv2", rounds),
        entry("onnxruntime", tuple(6 * seconds for seconds in rounds)),
        entry("openvino", tuple(3 * seconds for seconds in rounds)),
        entry("openvino_streams", tuple(2 * seconds for seconds in rounds)),
        Entry("compile", refused="no compiler"),
        peak=(500.0,) * 4,
    )
    header, _, row = markdown([found]).splitlines()
    assert header == (
        "| ms per image | effv2_kernels | PyTorch eager | torch.compile, frozen | ONNX Runtime "
        "| OpenVINO, its faster way | of peak |"
    )
    assert row == (
        "| S0, batch 1, 2 threads | 2.00-2.28 | - | - | 12.0-13.7 (6.00x) | 4.00-4.56 (2.00x) | 80% |"
    )
    same = comparison(entry("effv2", (2e-3,)), entry("openvino", (3e-3,)))
    assert "| 2.00 | - | - | - | 3.00 (1.50x) |" in markdown([same])


def test_runs_of_one_machine_are_pooled() -> None:
    one = comparison(
        entry("effv2", (1.0, 1.0)), entry("openvino", (3.0, 3.0)), entry("eager", (9.0, 9.0)), peak=(5.0, 5.0)
    )
    two = comparison(
        entry("effv2", (2.0,)), entry("openvino", (2.0,)), Entry("eager", refused="wrong"), peak=(6.0,)
    )
    other = comparison(entry("effv2", (1.0,)), batch=16)
    found, alone = pooled([one, other, two])
    assert alone is other
    assert found.entry("effv2").rounds == (1.0, 1.0, 2.0)
    assert found.ratio("openvino") == pytest.approx(3.0)
    assert found.entry("eager").refused == "wrong"
    assert found.ratio("eager") is None
    assert found.peak == (5.0, 5.0, 6.0)
    assert found.share_of_peak("effv2") is not None
    assert pooled([comparison(threads=1), comparison(threads=2)])[0].threads == 1


def test_json_round_trip(tmp_path: Path) -> None:
    random = np.random.default_rng()
    found = [
        comparison(
            entry("effv2", tuple(random.random(5).tolist())),
            entry("eager", tuple(random.random(5).tolist())),
            Entry("compile", refused="cannot run: no compiler"),
            peak=tuple(random.random(5).tolist()),
        ),
        comparison(batch=16),
    ]
    path = tmp_path / "found.json"
    write(path, found, machine="this one")
    assert read(path) == found
    data = json.loads(path.read_text())
    assert data["machine"] == "this one"
    assert data["comparisons"][0]["entries"][1]["derived"]["effv2_is_faster_by"] == found[0].ratio("eager")


def test_turns_alternate_and_begin_with_an_untimed_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "settle", lambda: None)
    monkeypatch.setattr(turns, "TURN_SECONDS", 0.0)
    called: list[str] = []
    found = turns.interleave(
        {"a": lambda: called.append("a"), "b": lambda: called.append("b")},
        0.0,
        gauge=lambda: called.append("peak") or 100.0,  # type: ignore[func-returns-value]
    )
    assert len(found.gauge) == turns.MIN_ROUNDS
    assert {name: [len(turn) for turn in found.calls[name]] for name in "ab"} == {
        "a": [1] * turns.MIN_ROUNDS,
        "b": [1] * turns.MIN_ROUNDS,
    }
    warm_up = ["a"] * 3 + ["b"] * 3
    assert called[:6] == warm_up
    assert called[6:16] == ["peak", "a", "a", "b", "b", "peak", "b", "b", "a", "a"]


@pytest.mark.alone
def test_more_time_gives_more_rounds() -> None:
    found = turns.interleave({"sleep": lambda: time.sleep(0.001)}, 0.5)
    assert len(found.calls["sleep"]) > turns.MIN_ROUNDS
    durations = [seconds for turn in found.calls["sleep"] for seconds in turn]
    assert min(durations) >= 0.001


def test_settle_waits_for_spinning_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process whose threads spin for the first 20 ms, on a clock that only sleeping moves."""
    wall = 0.0

    def sleep(seconds: float) -> None:
        nonlocal wall
        wall += seconds

    monkeypatch.setattr(turns.time, "sleep", sleep)
    monkeypatch.setattr(turns.time, "perf_counter", lambda: wall)
    monkeypatch.setattr(turns.time, "process_time", lambda: 2 * min(wall, 0.020))
    turns.settle()
    assert 0.020 <= wall < 0.025
    start = wall
    turns.settle()
    assert wall - start < 0.005
    # threads that never stop do not hold everything up
    monkeypatch.setattr(turns.time, "process_time", lambda: wall)
    start = wall
    turns.settle()
    assert 0.1 <= wall - start < 0.105


def contestant(name: str, change: Callable[[Tensor, int], Tensor], **options: object) -> Contestant:
    """Eager PyTorch whose output is changed; ``change`` is given the number of the call, from 1."""

    def build(model: nn.Module, images: Tensor, threads: int) -> tuple[Callable[[], Tensor], str]:
        count = 0

        def run() -> Tensor:
            nonlocal count
            count += 1
            with torch.inference_mode():
                return change(model(images), count)

        return run, f"threads={torch.get_num_threads()}"

    return Contestant(name, build, **options)  # type: ignore[arg-type]


def scaled(by: float) -> Callable[[Tensor, int], Tensor]:
    return lambda output, call: output * (1 + by)


@pytest.mark.alone
def test_wrong_results_get_no_figures(model: nn.Module, images: Tensor) -> None:
    def fail(output: Tensor, call: int) -> Tensor:
        raise RuntimeError("out of paper")

    before = torch.get_num_threads()
    found = compare(
        model,
        images,
        [
            contestant("right", scaled(0.0)),
            contestant("wrong", scaled(2 * RIVAL_BOUND)),
            contestant("wrong_later", lambda output, call: output * (1 + (1.0 if call > 2 else 0.0))),
            contestant("nan", lambda output, call: output * float("nan")),
            contestant("misshapen", lambda output, call: output[:, :-1]),
            contestant("fails", fail),
            contestant("absent", scaled(0.0), needs=("no_such_package",)),
            contestant("ours_off", scaled(10 * OWN_BOUND), bound=OWN_BOUND),
            contestant("rival_off", scaled(10 * OWN_BOUND)),
        ],
        threads=1,
        seconds=0.1,
    )
    assert torch.get_num_threads() == before
    timed = {e.name: e.refused is None for e in found.entries}
    assert timed == {
        "right": True,
        "wrong": False,
        "wrong_later": False,
        "nan": False,
        "misshapen": False,
        "fails": False,
        "absent": False,
        "ours_off": False,
        "rival_off": True,
    }
    for e in found.entries:
        assert bool(e.rounds) == bool(e.percentiles) == bool(e.calls) == timed[e.name], e.name
        if timed[e.name]:
            assert e.settings == "threads=1"
            assert len(e.rounds) == len(found.peak)
    assert found.entry("wrong").refused is not None
    assert "relative L2 2.0e-04" in (found.entry("wrong").refused or "")
    assert "out of paper" in (found.entry("fails").refused or "")
    assert "no_such_package" in (found.entry("absent").refused or "")


@pytest.mark.alone
def test_the_package_beside_eager(model: nn.Module, images: Tensor) -> None:
    found = compare(model, images, threads=1, seconds=0.2, name="small")
    assert [e.refused for e in found.entries] == [None, None]
    assert (found.model, found.batch, found.image_size, found.threads) == ("small", 3, (32, 32), 1)
    error, share = found.entry("effv2").error, found.share_of_peak("effv2")
    assert error is not None
    assert 0 < error <= OWN_BOUND
    assert share is not None
    assert 0 < share < 1
    assert found.isa is not None
    assert found.isa in found.entry("effv2").settings
    assert "small, 32x32, batch 3, 1 thread" in one(found)


@pytest.mark.thorough
@pytest.mark.parametrize("names", [["openvino", "openvino_streams"], ["onnxruntime"]])
def test_installed_rivals_run(model: nn.Module, images: Tensor, names: list[str]) -> None:
    if installed(tuple(names)) != names:
        pytest.skip(f"{names} are not installed")
    found = compare(model, images, names, threads=1, seconds=0.1)
    for name in names:
        assert found.entry(name).refused is None
        assert found.seconds_per_image(name) is not None


def test_compare_refuses_bad_input(model: nn.Module, images: Tensor) -> None:
    with pytest.raises(UnknownNameError, match="openvino"):
        compare(model, images, ["openvin"])
    with pytest.raises(InputError, match=r"\(0, 3, 32, 32\)"):
        compare(model, images[:0])
    with pytest.raises(ModelError, match=r"eval\(\)"):
        compare(nn.Sequential(), images)


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), -1.0])
def test_time_that_would_never_be_over(seconds: float, model: nn.Module, images: Tensor) -> None:
    def never() -> None:
        pytest.fail("it began")

    with pytest.raises(InputError, match="must be a finite number, at least 0, but got"):
        turns.interleave({"one": never}, seconds)
    with pytest.raises(InputError, match="must be a finite number, at least 0, but got"):
        compare(model, images, [contestant("one", lambda output, call: output)], seconds=seconds)


def test_targets_have_verdicts() -> None:
    found = comparison(entry("effv2", (1.0,)), entry("openvino", (1.39,)), peak=(100.0,))
    faster, share = speed_targets(found)
    assert (faster.bound, faster.met) == (1.40, False)
    assert (share.bound, share.met) == (0.70, False)
    faster, _ = speed_targets(comparison(entry("effv2", (1.0,)), entry("openvino", (1.41,))))
    assert faster.met
    # one way of OpenVINO without a figure, and the other alone says nothing about the faster one
    way = Entry("openvino_streams", refused="cannot run")
    (faster,) = speed_targets(comparison(entry("effv2", (1.0,)), entry("openvino", (9.0,)), way, batch=16))
    assert faster.met is None
    assert not Target("memory", 2.5, False, 2.6).met
    assert Target("memory", 2.5, False, 2.4).met
    text = table([Target("memory", 2.5, False, 2.6), Target("speed", 1.0, True, None, note="no AVX-512")])
    assert "MISSED" in text
    assert "not measured (no AVX-512)" in text
