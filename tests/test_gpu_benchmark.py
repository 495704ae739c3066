"""bench/gpu without a GPU: what is compared with what, and how turns are timed.

test_gpu_benchmark_steps.py has the order of the steps, test_gpu_benchmark_results.py what is kept and
reported, and test_gpu_benchmark_runs.py the command itself.
"""

import itertools
import json
import math
import re
import sys

import pytest
import torch
from checks import one_torch_thread, seeded
from gpu_clock import GpuClock
from models import Spec

pytest.importorskip("triton")

from bench.gpu import parity, scaling, speed, targets, timing
from bench.gpu.turns import Turns
from effv2_kernels import optimize, reference, shapes
from effv2_kernels.gpu.ceilings import Ceilings
from effv2_kernels.gpu.engine import Engine
from effv2_kernels.reference import Architecture
from effv2_kernels.triton.launch import Launch

CPU = torch.device("cpu")
TINY = Spec("tiny", Architecture((8, 8, 16, 16), (1, 0, 0, 0), 2, 0), img_size=32)
BLOCK = shapes.head(24, 10, 3, 2)


@pytest.fixture(autouse=True)
def quiet_pytorch():
    with one_torch_thread():
        yield


class Gpu(GpuClock):
    """Contestants move its clock."""

    def __init__(self, monkeypatch):
        super().__init__(monkeypatch)
        self.calls = []
        monkeypatch.setattr(timing.time, "perf_counter", lambda: self.now / 1e3)

    def contestant(self, name, milliseconds):
        def run(x):
            self.calls.append((name, x))
            self.now += milliseconds(self.now) if callable(milliseconds) else milliseconds

        return run

    def turns(self):
        """The names of consecutive calls without repetition."""
        return [name for name, _ in itertools.groupby(name for name, _ in self.calls)]


def test_contestants_take_turns_in_alternating_order(monkeypatch):
    gpu = Gpu(monkeypatch)
    runs = {name: gpu.contestant(name, ms) for name, ms in (("a", 1.0), ("b", 4.0), ("c", 50.0))}
    found = timing.interleave(runs, [0], seconds=0)
    assert {name: set(values) for name, values in found.items()} == {"a": {1.0}, "b": {4.0}, "c": {50.0}}
    assert [len(values) for values in found.values()] == [timing.MIN_ROUNDS] * 3
    # The first calls, then round after round.
    order = "abc" + "".join("cba" if i % 2 else "abc" for i in range(timing.MIN_ROUNDS))
    assert gpu.turns() == [name for name, _ in itertools.groupby(order)]
    of_a_turn = {name: sum(n == name for n, _ in gpu.calls) for name in runs}
    for name, ms in (("a", 1.0), ("b", 4.0), ("c", 50.0)):  # a wake-up and 20 ms, or one call
        first = timing._FIRST_CALLS + 3
        assert of_a_turn[name] == first + timing.MIN_ROUNDS * (1 + max(1, round(timing.TURN / ms)))


@pytest.mark.parametrize(("seconds", "rounds"), [(0, timing.MIN_ROUNDS), (0.5, 12), (1e9, timing.MAX_ROUNDS)])
def test_rounds_last_about_as_long_as_asked(monkeypatch, seconds, rounds):
    gpu = Gpu(monkeypatch)
    runs = {"a": gpu.contestant("a", 1.0), "b": gpu.contestant("b", 1.0)}  # a round: 2 * 21 ms
    assert len(timing.interleave(runs, [0], seconds)["a"]) == rounds


def test_ratios_are_those_of_rounds(monkeypatch):
    """A GPU that becomes slower and slower changes all times, but ratios only by its change in a round."""
    gpu = Gpu(monkeypatch)

    def slower(ms):
        return lambda now: ms * (1 + now / 500)

    runs = {"rival": gpu.contestant("rival", slower(3.0)), "ours": gpu.contestant("ours", slower(1.5))}
    found = timing.interleave(runs, [0], seconds=2)
    assert found["ours"][-1] > 3 * found["ours"][0]
    assert timing.median_ratio(found["rival"], found["ours"]) == pytest.approx(2, rel=0.05)
    assert timing.median_ratio([2.0, 9.0, 8.0], [1.0, 3.0, 1.0]) == 3.0


def test_inputs_rotate_over_all_turns(monkeypatch):
    gpu = Gpu(monkeypatch)
    inputs = list(range(33))
    timing.interleave({"a": gpu.contestant("a", 1.0), "b": gpu.contestant("b", 7.0)}, inputs, seconds=0)
    for name in "ab":
        given = [x for n, x in gpu.calls if n == name]
        assert len(given) > 33
        assert given == [i % 33 for i in range(len(given))]


def only(rows):
    (row,) = rows
    return row


@pytest.mark.parametrize("dtype", parity.DTYPES)
@pytest.mark.parametrize("shape", [BLOCK, shapes.conv(8, 16, 4, 3, stride=2)], ids=str)
def test_a_right_block(shape, dtype):
    row = only(parity.check_block("a block", shape, dtype, 2, CPU))
    assert row.ok, row
    assert 0 < row.error <= row.bound == parity.BLOCK_BOUNDS[dtype]
    assert json.loads(json.dumps(row.row()))["ok"] is True


def wrong_by(change):
    original = Engine.run
    return lambda engine, x: [change(y) for y in original(engine, x)]


def one_value_less(y):
    y.flatten()[0] += 0.5
    return y


WRONG = {
    "scaled": (
        lambda y: y * 1.02,
        r"relative L2 (1\.9|2\.0)\de-02, allowed are 5e-03; worst at \(\d, \d\): ",
    ),
    "one value": (one_value_less, r"worst at \(0, 0\)"),
    "transposed": (lambda y: y.t(), r"made \(10, 2\) torch.float16 where the reference has \(2, 10\)"),
    "another dtype": (lambda y: y.float(), r"made \(2, 10\) torch.float32"),
    "infinite": (lambda y: y / 0, "20 of 20 values are not finite"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_block(name, monkeypatch):
    change, message = WRONG[name]
    monkeypatch.setattr(Engine, "run", wrong_by(change))
    row = only(parity.check_block("a block", BLOCK, "fp16", 2, CPU))
    assert not row.ok
    assert re.search(message, row.failure), row.failure
    json.dumps(row.row(), allow_nan=False)


def test_memory_that_no_kernel_writes_is_noticed(monkeypatch):
    """Whatever memory held before, a launch that does nothing shows: in an output, and between launches."""
    shape = shapes.ffn(8, 16, 3, 3)
    assert only(parity.check_block("ffn", shape, "fp32", 1, CPU)).ok
    for skipped in (0, 1):
        count = iter(range(2))
        original = Launch.run
        with monkeypatch.context() as m:

            def run(*args, skipped=skipped, count=count, original=original):
                if next(count) != skipped:
                    original(*args)

            m.setattr(Launch, "run", run)
            row = only(parity.check_block("ffn", shape, "fp32", 1, CPU))
        assert "not finite" in row.failure, (skipped, row)
        assert next(count, None) is None


def test_poisoned_memory():
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        with parity.poisoned_memory():
            assert bool(torch.empty(5, dtype=dtype).isnan().all())
            assert bool(torch.empty(40, dtype=torch.uint8).view(dtype).isnan().all())
    assert not torch.are_deterministic_algorithms_enabled()


def test_what_raises_is_a_failure_of_its_own(monkeypatch):
    def no_kernel(*args, **kwargs):
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(parity, "Engine", no_kernel)
    row = only(parity.check_block("a block", BLOCK, "fp16", 1, CPU))
    assert (row.ok, row.error, row.failure) == (False, None, "RuntimeError: no kernel image is available")


def test_a_network_and_its_graph(monkeypatch):
    def check():
        return list(parity.check_network("tiny", TINY.build(seeded(70)), "fp32", 2, (32, 32), CPU))

    network, graph = check()
    assert (network.ok, graph.ok, graph.bound, graph.error) == (True, True, 0.0, 0.0)
    # A replay that gives other numbers than the launches, however little.
    calls = iter(range(9))
    original = Engine.run
    monkeypatch.setattr(
        Engine, "run", lambda engine, x, threads: [y + 1e-7 * next(calls) for y in original(engine, x)]
    )
    network, graph = check()
    assert network.ok
    assert not graph.ok
    assert "allowed are 0e+00" in graph.failure


def test_everything_is_checked():
    groups = parity.groups(targets.VARIANTS, CPU)
    keys = [check.key for group in groups for check in group.checks]
    assert len(keys) == len(set(keys))
    family = shapes.family_shapes()
    for dtype in ("fp16", "bf16", "fp32"):
        for batch in (1, 3):
            assert {f"{name} {dtype} batch {batch}" for name in family} <= set(keys)
        for variant in targets.VARIANTS:
            for images in ("224x224 batch 1", "224x224 batch 9", "384x384 batch 1", "160x256 batch 2"):
                assert f"{variant} {dtype} {images}" in keys
    # What the speed is claimed for comes first, other sizes last.
    assert [check.key for check in groups[0].checks] == [
        "s0 fp16 224x224 batch 1",
        "s0 fp16 224x224 batch 32",
    ]
    assert [group.what for group in groups][1:3] == ["blocks in fp16", "networks in fp16 at 224x224"]
    assert all("384x384" in group.what for group in groups[-3:])


def test_another_family_is_checked_where_it_is_asked_for():
    variants = targets.models("mobilenetv2_100")
    keys = [check.key for group in parity.groups(variants, CPU) for check in group.checks]
    for name in parity.shapes_of(variants):
        assert f"{name} fp16 batch 1" in keys
    assert keys[0] == "mobilenetv2_100 fp16 224x224 batch 1"
    model = parity.build(*variants, (33, 40), CPU)
    assert not model.training
    assert model(torch.zeros(1, 3, 33, 40)).shape == (1, 1000)


def test_models_have_weights_that_hide_no_error():
    model = parity.build("s0", (64, 96), CPU)
    assert model.img_size == (64, 96)
    assert not model.training
    assert all(float(p.abs().min()) >= 0.1 for name, p in model.named_parameters() if name.endswith("gamma"))
    again = parity.build("s0", (64, 96), CPU)
    assert again is not model  # measuring changes the dtype of the one it has
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    with torch.inference_mode():
        assert not any(p.is_inference() for p in parity.build("s0", (64, 96), CPU).parameters())


CEILINGS = Ceilings(bytes=4e12, flops=8e14)


class Fast:
    """Stands for an optimised TINY, whose interpreter would take a second for each call."""

    def __init__(self):
        self.model = TINY.build(seeded(71)).half()
        self.engine = optimize(TINY.build(seeded(71)), dtype="fp16", backend="triton").engine
        self.change = lambda y: y * 1.001

    def __call__(self, x):
        return self.change(self.model(x))


@pytest.fixture
def small(monkeypatch):
    """``speed.measure`` of TINY on the CPU, beside rivals that only exist on a GPU; returns ours."""
    fast = Fast()
    monkeypatch.setattr(speed, "SIZE", (32, 32))
    monkeypatch.setattr(speed, "build", lambda variant, size, device: TINY.build(seeded(71)))
    monkeypatch.setattr(speed, "optimised", lambda variant, device: fast)
    monkeypatch.setattr(
        speed,
        "inputs_of",
        lambda batch, device: [TINY.images(seeded(i), batch).half() for i in (1, 2)],
    )
    monkeypatch.setattr(speed, "graphed", lambda model, x: model)
    monkeypatch.setattr(speed, "compiled", lambda model, x, turns: lambda x: model(x).clone())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: None)
    monkeypatch.setattr(timing, "MIN_ROUNDS", 3)
    monkeypatch.setattr(timing, "kernels", lambda run, inputs: [("product", 2.5), ("mean", 1.0)])
    Gpu(monkeypatch).tick(monkeypatch)
    return fast


def test_measure(small):
    told = []
    row = speed.measure("s0", 2, CPU, CEILINGS, seconds=0, rival=True, ready=told.append)
    assert list(row["ms"]) == ["effv2", "eager", "eager graph", "compile"]
    assert row["faster_than"] == {"eager": 1.0, "eager graph": 1.0, "compile": 1.0}
    assert row["ms"]["effv2"] == 1.0
    assert {len(values) for values in row["rounds_ms"].values()} == {3}
    assert (row["inputs"], row["refused"], row["compile_without_cuda_graph"]) == (2, {}, 0)
    assert 0 < row["difference_from_eager"]["effv2"] < speed.DIFFERENCE
    assert "failure" not in row
    assert len(told) == 1
    assert row["kernels_us"]["compile"] == [("product", 2.5), ("mean", 1.0)]
    achieved = row["achieved"]
    assert achieved["bytes_per_second"] == pytest.approx(achieved["bytes"] * 1e3)
    assert achieved["share_of_ceiling"] == pytest.approx(
        max(achieved["bytes"] * 1e3 / 4e12, achieved["flop"] * 1e3 / 8e14)
    )
    json.dumps(row, allow_nan=False)
    assert "compile" not in speed.measure("s0", 2, CPU, CEILINGS, seconds=0, rival=False)["ms"]


def test_all_that_uses_the_gpu_is_in_turns(small, monkeypatch, tmp_path):
    """Or what one process makes would disturb what another one times."""
    turns, seen = Turns(tmp_path), {}

    def watched(name):
        real = getattr(speed, name)

        def run(*arguments, **options):
            seen[name] = set(turns._held)
            return real(*arguments, **options)

        monkeypatch.setattr(speed, name, run)

    for name in ("inputs_of", "build", "optimised", "graphed", "compiled", "difference"):
        watched(name)
    speed.measure("s0", 1, CPU, CEILINGS, seconds=0, rival=True, turns=turns)
    alone = {"gpu.lock", "compiling.lock"}
    assert seen.pop("compiled") == {"compiling.lock"}  # beside others that compile, which time in turns
    assert seen.pop("difference") == alone
    assert seen == {name: {"gpu.lock"} for name in ("inputs_of", "build", "optimised", "graphed")}


def test_measure_with_a_rival_that_cannot_run(small, monkeypatch):
    def broken(model, x, turns):
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(speed, "compiled", broken)
    row = speed.measure("s0", 1, CPU, CEILINGS, seconds=0, rival=True)
    assert row["refused"] == {"compile": "RuntimeError: Failed to find C compiler"}
    assert list(row["faster_than"]) == ["eager", "eager graph"]


def test_a_wrong_image_among_many_is_no_figure(small, monkeypatch):
    """Outside of parity, since these batches and tiles occur only here."""

    def last_image_wrong(y):
        y[-1] = y[-1].flip(0)
        return y

    small.change = last_image_wrong
    row = speed.measure("s0", 3, CPU, CEILINGS, seconds=0, rival=False)
    assert "differs from eager by" in row["failure"]
    assert math.isinf(speed.difference(torch.tensor([[1.0, math.nan]]), torch.ones(1, 2)))


def test_a_rival_that_is_wrong_is_no_rival(small, monkeypatch):
    monkeypatch.setattr(speed, "compiled", lambda model, x, turns: lambda x: model(x) * 1.1)
    row = speed.measure("s0", 1, CPU, CEILINGS, seconds=0, rival=True)
    assert row["refused"]["compile"].startswith("differs from eager by ")
    assert "compile" not in {**row["ms"], **row["faster_than"], **row["rounds_ms"]}
    assert "failure" not in row


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_said(small, value):
    small.change = lambda y: y * value
    row = speed.measure("s0", 1, CPU, CEILINGS, seconds=0, rival=False)
    assert row["difference_from_eager"]["effv2"] is None
    assert row["failure"].startswith("differs from eager by inf")
    json.dumps(row, allow_nan=False)


def test_rivals_gather_their_biases_once(monkeypatch):
    model, x = parity.build("s0", (64, 96), CPU), torch.randn(2, 3, 64, 96, generator=seeded(4))
    with torch.no_grad():
        expected = model(x)
        speed.keep_biases(model)

        def gather(*_, **__):
            raise AssertionError("gathered again")

        for module in (reference.attention, reference.attention_downsample):
            monkeypatch.setattr(sys.modules[module.__module__], "bias_for", gather)
        assert torch.equal(model(x), expected)
        assert torch.equal(torch.compile(model, backend="eager", fullgraph=True)(x), expected)


def test_tuning_stops_when_the_time_is_over(monkeypatch):
    class Fake:
        asked = 0

        def tune(self, x, progress):
            for i in range(11):
                self.asked = i
                progress("product", i / 10)
            return {"product x": {"BM=16": 0.1}}

    engine = Fake()
    monkeypatch.setattr(speed, "optimised", lambda *_: None)
    monkeypatch.setattr(speed, "engine_of", lambda _: engine)
    monkeypatch.setattr(speed, "inputs_of", lambda *_, **__: [None])
    left = iter([True] * 4 + [False])
    assert speed.tune("s0", 1, CPU, lambda: next(left)) is None
    assert engine.asked == 4
    # Done is done, even at the last moment.
    left = iter([True] * 10 + [False])
    assert speed.tune("s0", 1, CPU, lambda: next(left)) == {"product x": {"BM=16": 0.1}}


def test_the_cpu_of_that_machine(monkeypatch):
    """From one thread to as many as there are cores; what is wrong is no figure."""
    monkeypatch.setattr(scaling, "cores", lambda: 4)
    assert list(scaling.figures()) == [
        f"{variant} {batch} {threads}"
        for batch in (1, 16)
        for variant in ("s0", "l")
        for threads in (1, 2, 4)
    ]
    monkeypatch.setattr(scaling, "SIZE", (64, 64))
    before = torch.get_num_threads()
    row = scaling.measure("s0", 2, 2, seconds=0)
    assert torch.get_num_threads() == before
    assert set(row["ms"]) == {"effv2", "eager"}
    assert 0 < row["difference_from_eager"] < scaling.DIFFERENCE
    assert "failure" not in row
    json.dumps(row, allow_nan=False)
    monkeypatch.setattr(scaling, "DIFFERENCE", 0.0)
    assert "differs from eager by" in scaling.measure("s0", 2, 2, seconds=0)["failure"]
