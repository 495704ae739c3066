"""A network in one launch, of kernels that only tests have: when it is chosen, and the memory it takes."""

import contextlib
import logging
from types import SimpleNamespace

import pytest
import torch
from checks import NETWORK_BOUND, assert_close, exact_network, one_torch_thread
from rival_kernels import (
    KINDS,
    MIX,
    NETWORK,
    RIVALS,
    Clock,
    Joined,
    Machine,
    RivalBlock,
    Time,
    by,
    images,
    made,
    right,
    tuned,
)

from effv2_kernels.errors import UnavailableError
from effv2_kernels.gpu import one_launch, planner
from effv2_kernels.gpu.engine import Engine
from effv2_kernels.gpu.graph import Graph
from effv2_kernels.gpu.one_launch import OneLaunchPlan

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def machine(monkeypatch, tmp_path):
    with one_torch_thread():
        yield Machine(monkeypatch, tmp_path)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def row(found):
    return found.one_launch(32, 32)


def is_one(found, batch=1):
    return isinstance(found._planner.make(planner.Images.like(images(batch), "ieee")).plan, OneLaunchPlan)


def plan_of(batch=1, device=CPU):
    (*part,) = made(RIVALS)._planner._part(planner.Images.like(images(batch), "ieee"))
    return OneLaunchPlan(*part, "ieee", device)


def test_as_fast_as_the_best_mix_or_faster(clock):
    times = clock.times
    times["one launch"] = 8.0
    found = right(tuned())
    assert row(found).used
    assert row(found).why.startswith("8.0000 ms, as single launches 9.0000 ms; checked: relative error ")
    assert (row(found).launches, row(found).blocks) == (len(KINDS), 3)
    assert [task.kernel for task in row(found).tasks] == [f"rival_{kind}" for kind in KINDS]
    assert {d.backend for d in found.decisions(32, 32)} == {"rival"}


def test_slower_than_the_best_mix(clock):
    found = right(tuned())
    assert not row(found).used
    assert row(found).why == "10.0000 ms, as single launches 9.0000 ms"


def test_another_mix_is_another_comparison(clock, machine):
    """It was measured against launches that are slower now."""
    times = clock.times
    times["one launch"] = 8.0
    assert row(right(tuned())).used
    errors = machine.findings.times(RivalBlock)
    key = next(key for key in errors._values if "way=another" in key)
    errors.add({key: "100.0"})
    assert row(right(made())).why == "not measured: tune() measures whether that is faster"


def test_by_name_one_image_is_one_launch_unmeasured(clock):
    found = right(made(RIVALS))
    assert row(found).used
    assert row(found).why.startswith("not measured; for one image the first choice; checked: ")
    assert not is_one(made(RIVALS), 2)
    clock.times["one launch"] = 1.0
    assert is_one(tuned(RIVALS, 8), 8)


def test_not_of_a_mix_unmeasured_even_where_no_block_is_trusted(clock):
    found = tuned()
    assert set(by(found)) == {"rival", "rival another"}
    found._planner.make(planner.Images.like(images(), "ieee"))
    clock.times["one launch"] = 1.0
    assert not is_one(made(), 1)  # known from before


def test_for_few_images():
    assert plan_of(one_launch.MOST_IMAGES)
    with pytest.raises(UnavailableError, match="it is for 8 images at most, not 9"):
        plan_of(9)
    found = made(RIVALS)
    right(found, 9)
    assert (row(found).used, row(found).why) == (False, "it is for 8 images at most, not 9")


def test_a_wrong_one_is_never_taken(clock, machine, monkeypatch, caplog):
    clock.times["one launch"] = 1.0
    monkeypatch.setattr(Joined, "breaks", [lambda y, control: y.mul_(1.1)])
    with caplog.at_level(logging.WARNING):
        found = right(tuned())
        assert not row(found).used
        assert not row(right(made(RIVALS))).used
    (record,) = caplog.records
    assert (
        "the network is not run in one launch on this GPU (NVIDIA Test 9000): that failed its"
        in record.getMessage()
    )


def test_one_that_is_wrong_the_second_time(clock, monkeypatch):
    """What it counts in must be as it should for the next launch."""
    clock.times["one launch"] = 1.0

    def second(y, control):
        if int(control[0]) > 1:
            y.zero_()

    monkeypatch.setattr(Joined, "breaks", [second])
    assert not row(tuned()).used


def test_one_that_was_right_with_another_driver(clock, machine, monkeypatch):
    clock.times["one launch"] = 1.0
    assert row(tuned()).used
    machine.restart("590.10")
    monkeypatch.setattr(Joined, "breaks", [lambda y, control: y.zero_()])
    found = made()
    assert not row(found).used
    assert row(found).why.endswith("failed its check: relative error 1.0e+00, and rounding explains 0.02")


def test_one_that_cannot_be_checked_in_time(clock, machine, monkeypatch):
    clock.times["one launch"] = 1.0
    tuned()
    machine.restart("590.10")
    Time(monkeypatch, 0.3)
    first = row(made())
    assert not first.used
    assert first.why.endswith("not checked: the 5 seconds for checks were over")
    assert row(made()).why == first.why  # they are those of a process
    machine.restart("590.10")
    assert row(made()).used  # its blocks were checked by then


def test_runs_on_control_memory_of_its_own():
    plan, x = plan_of(), images()
    expected = exact_network(NETWORK, x)
    for calls in (1, 2, 3):
        assert_close(plan.run(x)[0].flatten(1), expected[0], NETWORK_BOUND)
        (control,) = plan._controls.values()
        assert int(control[0]) == calls


@pytest.fixture
def streams(monkeypatch):
    """A GPU with streams and captures, for a plan that in truth runs on the CPU."""
    now = SimpleNamespace(stream=1, capturing=False)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: now.capturing)
    monkeypatch.setattr(
        torch.cuda, "current_stream", lambda device=None: SimpleNamespace(cuda_stream=now.stream)
    )
    monkeypatch.setattr(
        OneLaunchPlan, "new_control", lambda plan: torch.zeros(plan.joined.control_bytes, dtype=torch.uint8)
    )
    return now


def test_each_stream_has_its_own(streams):
    plan, x = plan_of(device=torch.device("cuda:0")), images()
    for stream in (1, 2, 1, 1):
        streams.stream = stream
        plan.run(x)
    assert {stream: int(control[0]) for stream, control in plan._controls.items()} == {1: 3, 2: 1}


def test_the_memory_of_streams_is_bounded(streams, monkeypatch):
    monkeypatch.setattr(one_launch, "_MAX_STREAMS", 2)
    plan, x = plan_of(device=torch.device("cuda:0")), images()
    for stream in (1, 2, 1, 3):
        streams.stream = stream
        plan.run(x)
    assert list(plan._controls) == [1, 3]


def test_a_capture_has_its_own(streams):
    """In memory of the graph, which clears it each time: nobody else counts there."""
    plan, x = plan_of(device=torch.device("cuda:0")), images()
    plan.run(x)
    streams.capturing = True
    for _ in range(2):
        plan.run(x)
    assert {stream: int(control[0]) for stream, control in plan._controls.items()} == {1: 1}


def test_a_graph_clears_it_before_it_is_captured(streams, monkeypatch):
    plan, x = plan_of(device=torch.device("cuda:0")), images()
    order = []
    new_control = OneLaunchPlan.new_control
    monkeypatch.setattr(OneLaunchPlan, "new_control", lambda p: order.append("cleared") or new_control(p))

    @contextlib.contextmanager
    def captured(graph):
        order.append("captured")
        yield

    monkeypatch.setattr("effv2_kernels.gpu.graph.captured", captured)
    for name in ("Event", "CUDAGraph"):
        monkeypatch.setattr(torch.cuda, name, lambda: SimpleNamespace(synchronize=lambda: None))
    Graph(plan, x)
    assert order == ["cleared", "captured"]
    assert not plan._controls


def test_it_is_not_captured_as_a_graph(monkeypatch):
    """That would copy images and outputs, to save the start of one kernel."""
    found = made(RIVALS)
    found._cuda_graph = True
    monkeypatch.setattr("effv2_kernels.gpu.engine.Graph", None)
    for _ in range(3):
        right(found)


def test_parts_of_the_network():
    """What forward_features runs: all but the head."""
    found = Engine(NETWORK, RIVALS, torch.float32, CPU)
    count = len(NETWORK.blocks) - 1
    (y,) = found.run(images(), stop=count)
    (features,) = Engine(NETWORK, MIX, torch.float32, CPU).run(images(), stop=count)
    assert torch.equal(y, features)
