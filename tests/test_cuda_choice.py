"""The CUDA kernels beside Triton's, both run on the CPU: chosen, checked, explained, and in one launch."""

import dataclasses

import cuda_engines
import pytest
import torch
from checks import HALF_NETWORK_BOUND, assert_close, exact_network, relative_l2, seeded
from cuda_engines import ATTENTION, CPU, FFN, KINDS, NETWORK, decisions, images, made, right, row, tuned
from models import SMALL, SMALL_MOBILE, TINY

from effv2_kernels import explain, optimize, sources
from effv2_kernels.__main__ import main
from effv2_kernels.cli import models
from effv2_kernels.cuda import launch as cuda_launch
from effv2_kernels.cuda.launch import Launch
from effv2_kernels.errors import UnavailableError
from effv2_kernels.gpu import parity, planner
from effv2_kernels.gpu.findings import Findings
from effv2_kernels.gpu.kernels import kernels_of
from effv2_kernels.gpu.launch import FeatureMap

clock, findings = cuda_engines.clock, cuda_engines.findings  # fixtures


def test_auto_unmeasured_is_triton():
    found = right(made("auto"))
    assert {d.backend for d in decisions(found)} == {"triton"}
    assert decisions(found)[0].why == "tune() measures whether cuda is faster"
    assert row(found).why == "not measured: tune() measures whether that is faster"


def test_auto_measured_is_the_faster_one(clock):
    clock["one launch"] = 9.0
    found = right(tuned("auto"), images())
    assert [(d.backend, d.way) for d in decisions(found)] == [
        ("cuda", "by channels" if kind == "ffn" else "") for kind in KINDS
    ]
    why = decisions(found)[FFN].why
    assert why.startswith("0.5000 ms; checked: relative error ")
    assert why.endswith("; triton 2.0000 ms; cuda whole 1.0000 ms; cuda in halves 1.0000 ms")


def test_auto_in_one_launch(clock):
    found = right(tuned("auto"))
    assert row(found).used
    assert row(found).why.startswith("3.0000 ms, as single launches 4.0000 ms; checked: relative error ")


def test_a_mix_of_both(clock, findings):
    """Each reads what the other wrote."""
    clock["one launch"], clock["part=widen"] = 9.0, 3.0
    clock["cuda_attention"] = 7.0
    found = right(tuned("auto"))
    backends = [d.backend for d in decisions(found)]
    assert backends[ATTENTION] == "triton"
    assert backends[0] == "cuda"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("batch", [1, 3])
def test_by_name(dtype, batch):
    found = right(made("cuda", dtype=dtype), images(batch, dtype))
    assert row(found).used == (batch == 1)
    assert {d.backend for d in decisions(found)} == {"cuda"}


@pytest.mark.parametrize("spec", [SMALL[0], SMALL_MOBILE[0]], ids=lambda spec: spec.name)
def test_networks(spec):
    network = sources.read(spec.build(seeded(102)))
    x = spec.images(seeded(103)).half()
    for batch in (x, x.expand(2, -1, -1, -1).contiguous(memory_format=torch.channels_last)):
        right(made("cuda", network), batch, network)


def test_feature_maps_in_one_launch():
    norms = (True, False, True, False)
    network = sources.read(
        SMALL[0].build(seeded(104), num_classes=0, features_only=True, feature_norms=norms)
    )
    found = made("cuda", network)
    x = SMALL[0].images(seeded(105)).half()
    right(found, x, network)
    assert found.one_launch(*x.shape[2:]).used


def test_one_launch_again_and_again():
    """On the same memory, without clearing any of it."""
    found, single = made("cuda"), made("cuda")
    plan = single._planner.outline(planner.Images.like(images(), "ieee"))
    for number in range(3):
        x = images() + number
        (y,) = found.run(x)
        assert relative_l2(y, plan.run(x)[0].flatten(1).double()) < 1e-3
    planned = next(iter(found._planned.values())).made.plan
    (control,) = planned._controls.values()
    counted = int(control[:8].view(torch.int64))
    assert counted % 3 == 0
    assert counted > 3 * len(row(found).tasks)  # blocks of threads find the end as well


def test_a_model_that_moved_is_planned_anew():
    """As to another GPU: on memory, and with kernels, of that one."""
    fast = optimize(TINY.build(seeded(100)), backend="cuda", dtype="fp16")
    expected, before = fast(images()), fast.engine
    fast._apply(torch.clone)
    assert fast.engine is not before
    assert torch.equal(fast(images()), expected)


def test_a_model_by_name():
    model = TINY.build(seeded(100))
    fast = optimize(model, backend="cuda", dtype="fp16")
    assert fast.choice.isa == "emulator"
    (expected,) = exact_network(NETWORK, images())
    assert_close(fast(images()), expected, HALF_NETWORK_BOUND, dtype=torch.float16)
    with pytest.raises(UnavailableError, match="computes in bf16, fp16, not in fp32"):
        optimize(model, backend="cuda")


def test_explained():
    fast = optimize(TINY.build(seeded(100)), backend="cuda", dtype="fp16")
    explanation = explain(fast)
    (joined,) = explanation.one_launch
    assert joined.row.used
    lines = str(explanation).splitlines()
    (line,) = [line for line in lines if line.startswith("One launch: ")]
    assert line.startswith(
        "One launch: the network runs in one (not measured; for one image the first choice; checked: "
    )
    assert f"; {len(joined.row.tasks)} tasks of 18 launches, taken by 4 blocks of threads" in line
    assert not any(line.startswith("task ") for line in lines)
    fast(images(2))
    text = str(explain(fast))
    assert "Chosen:" in text
    assert "cuda by channels" in text
    assert "the network does not run in one (not measured: tune() measures whether that is faster)" in text


def test_tasks_are_listed():
    fast = optimize(TINY.build(seeded(100)), backend="cuda", dtype="fp16")
    explanation = explain(fast, tasks=True)
    tasks = explanation.one_launch[0].row.tasks
    lines = str(explanation).splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("task "))
    assert lines[first].split() == ["task", "launch", "tile", "waits", "for", "raises"]
    listed = lines[first + 2 : first + 2 + len(tasks)]
    assert [line.split()[:4] for line in listed] == [
        [str(i), str(task.launch), task.kernel, str(task.tile)] for i, task in enumerate(tasks)
    ]
    raised = set()
    for task in tasks:  # whatever one waits for is raised before it
        assert {flag for needed in task.waits for flag in needed} <= raised
        raised |= set(task.raises)


def test_explained_on_the_command_line(monkeypatch, capsys):
    monkeypatch.setattr(models, "build", lambda args: TINY.build(seeded(100)))
    options = ["--img-size", "32", "--backend", "cuda", "--dtype", "fp16", "--tasks"]
    assert main(["explain", *options]) == 0
    shown = capsys.readouterr().out
    assert "backend cuda in fp16; GPU emulator" in shown
    assert "waits for" in shown


def test_another_build_is_checked_again(findings, monkeypatch, tmp_path):
    right(made("cuda"), images(2))
    monkeypatch.setattr(Launch, "build", "0123")
    assert findings[-1].errors(Launch).path.name.count(cuda_launch._build()) == 1
    findings.append(Findings("NVIDIA Test 9000", "580.65"))
    right(made("cuda"), images(2))
    assert len([path for path in tmp_path.iterdir() if path.name.endswith("-checked.json")]) == 2


def test_checks_hold_for_bfloat16(findings):
    """Whose rounding is the coarsest: far enough from the bound on which kernels are refused."""
    network = sources.read(SMALL[0].build(seeded(108)))
    right(made("cuda", network, torch.bfloat16), SMALL[0].images(seeded(109), 2).bfloat16(), network)
    errors = [float(error) for error in findings[-1].errors(Launch)._values.values()]
    assert max(errors) < 0.85 * parity.bounds.HALF_BLOCK


def test_no_tracing():
    packed = kernels_of("cuda").pack(NETWORK.blocks[0], torch.float16, CPU)
    (launch,) = packed.plan(FeatureMap(1, 32, 32, 3, torch.float16), "ieee")
    with pytest.raises(NotImplementedError, match="no operators"):
        launch.trace(launch.tiles[0], {})
    assert dataclasses.replace(launch).trusted is False
