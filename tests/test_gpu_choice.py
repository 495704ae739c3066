"""What runs each block, with kernels that only tests have: nothing that is wrong, unchecked or slower."""

import json
import logging
from types import SimpleNamespace

import pytest
import torch
from checks import NETWORK_BOUND, assert_close, exact_network, one_torch_thread, rebuilt, seeded
from models import SMALL, TINY
from rival_kernels import (
    KINDS,
    MIX,
    NETWORK,
    RIVALS,
    USUAL,
    Clock,
    Machine,
    Rival,
    RivalBlock,
    Time,
    UsualBlock,
    by,
    images,
    made,
    right,
    tuned,
)

from effv2_kernels import blocks, sources
from effv2_kernels.errors import UnavailableError
from effv2_kernels.gpu import findings, parity, planner
from effv2_kernels.gpu.engine import Engine
from effv2_kernels.gpu.mix import Mix
from effv2_kernels.reference import run_block

CPU = torch.device("cpu")
PASSED = "checked: relative error "


@pytest.fixture(autouse=True)
def machine(monkeypatch, tmp_path):
    with one_torch_thread():
        yield Machine(monkeypatch, tmp_path)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def why(found, kind="ffn"):
    return found.decisions(32, 32)[KINDS.index(kind)].why


def test_unmeasured_only_what_is_trusted(machine):
    found = right(made())
    assert by(found) == ["usual"] * len(KINDS)
    assert why(found, "stem") == "tune() measures whether rival is faster"
    assert why(found) == "tune() measures whether rival one way or rival another is faster"
    assert not RivalBlock.ran
    row = found.one_launch(32, 32)
    assert (row.used, row.why) == (False, "not measured: tune() measures whether that is faster")


def test_measured_to_be_faster_and_checked(clock):
    found = right(tuned())
    assert by(found) == ["rival" if kind != "ffn" else "rival another" for kind in KINDS]
    assert why(found).startswith(f"1.0000 ms; {PASSED}")
    assert why(found).endswith("; usual 2.0000 ms; rival one way 3.0000 ms")


def test_measured_to_be_slower(clock):
    clock.times["rival"] = 5.0
    found = right(tuned())
    assert by(found) == ["usual"] * len(KINDS)
    assert why(found) == "2.0000 ms; rival one way 3.0000 ms; rival another 5.0000 ms"


def test_what_is_known_is_not_measured_again(clock, machine):
    tuned()
    measured = clock.measured
    assert len(measured) == len(set(measured))
    # Two ways for each ffn, and the network in one launch or not.
    assert sum("rival" in key for key in measured) == len(KINDS) + KINDS.count("ffn")
    assert sum("launch" in key for key in measured) == 2
    measured.clear()
    machine.restart()
    tuned()
    assert not measured
    tuned(batch=2)
    assert measured


def test_half_of_a_comparison_is_none(clock, machine):
    """Where the time of what is trusted is gone, such as with another compiler of it."""
    tuned()
    machine.findings.times(UsualBlock).path.unlink()
    machine.restart()
    assert by(right(made())) == ["usual"] * len(KINDS)


WRONG = {
    "wrong": lambda y: y.mul_(1.01),
    "a part": lambda y: y[: max(1, y.numel() // 100)].zero_(),
    "not finite": lambda y: y[-1:].fill_(torch.inf),
    "unwritten": lambda y: y[:1].fill_(torch.nan),
}


@pytest.mark.parametrize("how", WRONG)
def test_a_wrong_kernel_is_never_taken(how, clock, machine, monkeypatch, caplog):
    monkeypatch.setattr(RivalBlock, "breaks", {"attention": WRONG[how]})
    with caplog.at_level(logging.WARNING):
        found = right(tuned())
    assert by(found)[KINDS.index("attention")] == "usual"
    assert by(found)[KINDS.index("conv")] == "rival"
    assert "rival failed its check: relative error" in why(found, "attention")
    (record,) = [r for r in caplog.records if "rival_attention" in r.getMessage()]
    assert (
        "rival (rival_attention) is not used on this GPU (NVIDIA Test 9000): it failed" in record.getMessage()
    )
    assert "report this" in record.getMessage()


def test_a_kernel_that_became_wrong_with_another_driver(clock, machine, monkeypatch, caplog):
    """It was right and faster when it was measured."""
    assert by(right(tuned()))[0] == "rival"
    monkeypatch.setattr(RivalBlock, "breaks", {"stem": WRONG["wrong"]})
    machine.restart("590.10")
    with caplog.at_level(logging.WARNING):
        found = right(made())
    assert by(found)[0] == "usual"
    assert "failed its check" in why(found, "stem")
    assert len(caplog.records) == 1


def test_checked_once_for_each_gpu_driver_and_version(clock, machine, tmp_path):
    tuned()
    RivalBlock.ran.clear()
    machine.restart()
    made()._planner.make(planner.Images.like(images(), "ieee"))
    assert not RivalBlock.ran
    machine.restart("590.10")
    made()._planner.make(planner.Images.like(images(), "ieee"))
    assert RivalBlock.ran.count("stem") == 1
    checked = [path for path in tmp_path.iterdir() if path.name.endswith("-checked.json")]
    assert sorted(path.name.partition("rival-1-")[2] for path in checked) == [
        "driver-580.65-checked.json",
        "driver-590.10-checked.json",
    ]
    assert all(path.name.startswith("nvidia-test-9000-0.") for path in checked)
    kept = json.loads(checked[0].read_text())
    assert all(float(error) < 1e-5 for error in kept.values())


def test_a_failure_is_remembered_and_said_once_in_each_process(clock, machine, monkeypatch, caplog):
    monkeypatch.setattr(RivalBlock, "breaks", {"stem": WRONG["wrong"]})
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            tuned()
        assert sum("rival_stem" in record.getMessage() for record in caplog.records) == 1
        RivalBlock.ran.clear()
        caplog.clear()
        machine.restart()
        tuned()
    assert sum("rival_stem" in record.getMessage() for record in caplog.records) == 1
    assert not RivalBlock.ran


def test_the_weights_of_the_model_hide_nothing(clock, monkeypatch):
    """A branch that is scaled to nothing would, and the next model has kernels of the same sizes."""
    scaled = [
        rebuilt(block, fc2_weight=block.fc2.weight * 1e-6, fc2_bias=block.fc2.bias * 0)
        if block.kind == "ffn"
        else block
        for block in NETWORK.blocks
    ]
    network = blocks.Network(tuple(scaled), NETWORK.names, NETWORK.features)
    ffn = KINDS.index("ffn")

    def no_branch(block):
        return lambda x: x if block.kind == "ffn" else run_block(block, x)

    broken = SimpleNamespace(**vars(RIVALS))
    broken.pack = lambda block, dtype, device: Rival(no_branch(block), block.kind)
    found = Engine(network, Mix({"usual": USUAL, "rival": broken}), torch.float32, CPU)
    found.tune(images(), lambda what, share: None)
    assert found.decisions(32, 32)[ffn].backend == "usual"
    assert "rival another failed its check" in found.decisions(32, 32)[ffn].why


def test_a_launch_that_fails_is_a_kernel_that_failed(clock, machine, monkeypatch, caplog):
    def refuse(y):
        raise UnavailableError("no kernel image is available")

    monkeypatch.setattr(RivalBlock, "breaks", {"conv": refuse})
    with caplog.at_level(logging.WARNING):
        found = right(tuned())
    assert by(found)[KINDS.index("conv")] == "usual"
    assert why(found, "conv").endswith("rival cannot be launched: no kernel image is available")
    # It may have been of this process alone.
    monkeypatch.setattr(RivalBlock, "breaks", {})
    machine.restart()
    assert by(right(tuned()))[KINDS.index("conv")] == "rival"


def test_too_little_memory_for_a_check(clock, machine, monkeypatch, caplog):
    def full(y):
        raise torch.OutOfMemoryError("CUDA out of memory")

    tuned()
    monkeypatch.setattr(RivalBlock, "breaks", {"stem": full})
    machine.restart("590.10")
    with caplog.at_level(logging.WARNING):
        found = right(made())
    assert by(found)[0] == "usual"
    assert "not checked: there was too little free memory for it" in why(found, "stem")
    assert "could not be checked on this GPU (NVIDIA Test 9000): there was too little" in caplog.text


def test_checks_take_five_seconds_at_most(clock, machine, monkeypatch, caplog):
    tuned()
    RivalBlock.ran.clear()
    machine.restart("590.10")
    Time(monkeypatch, 2.0)
    with caplog.at_level(logging.WARNING):
        found = right(made())
    assert by(found) == ["rival", "rival another", *["usual"] * (len(KINDS) - 2)]
    assert why(found, "attention").endswith("rival not checked: the 5 seconds for checks were over")
    (record,) = caplog.records
    assert "some kernels could not be checked" in record.getMessage()
    assert "tune() checks all of them" in record.getMessage()
    # What was checked is kept, and the next process goes on from there.
    RivalBlock.ran.clear()
    machine.restart("590.10")
    assert by(right(made()))[:3] == ["rival", "rival another", "rival"]


def test_nothing_is_checked_within_a_capture(clock, machine, monkeypatch):
    found = made()
    monkeypatch.setattr(Engine, "_within_capture", lambda engine: True)
    for call in (
        found.run,
        lambda x: found.tune(x, lambda what, share: None),
        lambda x: found.describe(32, 32),
    ):
        with pytest.raises(UnavailableError, match="while a CUDA graph is captured"):
            call(images())
    assert not RivalBlock.ran


def test_a_backend_by_name_takes_what_is_right(clock, machine, monkeypatch):
    found = right(made(RIVALS), batch=2)
    assert by(found) == ["rival" if kind != "ffn" else "rival one way" for kind in KINDS]
    assert why(found).startswith(PASSED)
    assert why(found).endswith("; tune() measures whether rival another is faster")
    assert by(right(tuned(RIVALS, 2), batch=2))[KINDS.index("ffn")] == "rival another"


def test_a_backend_by_name_that_is_wrong(monkeypatch, caplog):
    monkeypatch.setattr(RivalBlock, "breaks", {"stem": WRONG["wrong"]})
    message = (
        r"no kernel for block 0 can be used on this GPU \(NVIDIA Test 9000\): rival failed its check: "
        r"relative error 1.0e-02, and rounding explains 0.005. Use backend='triton', and please report"
    )
    found = made(RIVALS)
    for _ in range(2):
        with pytest.raises(UnavailableError, match=message):
            found.run(images(2))


def test_a_backend_by_name_that_could_not_be_checked(monkeypatch, caplog):
    with caplog.at_level(logging.WARNING):
        plan = made(RIVALS)._planner.make(planner.Images.like(images(2), "ieee"), findings.Budget(0.0)).plan
    assert {chosen.alternative.backend for chosen in plan.chosen} == {"rival"}
    assert all("not checked" in chosen.why for chosen in plan.chosen)
    assert len(caplog.records) == 1


def test_what_another_backend_cannot_run(clock):
    found = made()
    x = TINY.images(seeded(91), 100)
    found.tune(x, lambda what, share: None)
    plan = found._planner.make(planner.Images.like(x, "ieee")).plan
    assert {chosen.alternative.backend for chosen in plan.chosen} == {"usual"}
    assert plan.chosen[0].why == "rival: of 99 images at most"
    with pytest.raises(UnavailableError, match="of 99 images at most"):
        made(RIVALS).run(x)


def test_a_block_that_another_backend_has_no_kernel_for():
    network = sources.read(TINY.build(seeded(92), num_classes=100))
    found = Engine(network, MIX, torch.float32, CPU)
    assert found.decisions(32, 32)[-1].why == "rival: no kernel for a head of others"
    row = found.one_launch(32, 32)
    assert row is None


def test_outputs_with_a_scale(clock):
    norms = (True, False, True, False)
    network = sources.read(SMALL[0].build(seeded(93), num_classes=0, features_only=True, feature_norms=norms))
    x = SMALL[0].images(seeded(94))
    for times in (10.0, 1.0):
        clock.times["one launch"] = times
        found = Engine(network, MIX, torch.float32, CPU)
        found.tune(x, lambda what, share: None)
        for y, expected in zip(found.run(x), exact_network(network, x), strict=True):
            assert_close(y, expected, NETWORK_BOUND)
    assert found.packed_bytes == 0


def test_tf32_is_another_choice():
    found = made()
    assert len({planner.Images.like(images(), precision) for precision in ("ieee", "tf32")}) == 2
    assert right(found)


def test_one_wrong_value_of_many_is_seen():
    """It adds next to nothing to the L2 norm of a large map."""
    checks = made()._planner._checks(planner.Images.like(images(), "ieee"), 1e9)
    checks._until = float("inf")
    exact = torch.randn(3, 8, 100, 100, generator=seeded(95)).double()

    def error(change):
        y = exact.clone()
        y[2, 7, 99, 99] += change
        assert (y - exact).norm() / exact.norm() < parity.bounds.HALF_BLOCK
        return checks._error([y], exact, 2, lambda part: [part])

    assert error(0.0) == 0.0
    assert error(0.1) < parity.bounds.HALF_BLOCK
    assert error(1.0) > parity.bounds.HALF_BLOCK


def test_large_batches_are_compared_in_parts(monkeypatch):
    """The reference of all images at once could take more memory than a run."""
    sizes = []
    monkeypatch.setattr(parity, "run_block", lambda block, x: sizes.append(len(x)) or run_block(block, x))
    monkeypatch.setattr(parity, "_VALUES", 3000)
    right(made(RIVALS), 5)
    assert {1, 5} <= set(sizes)  # of large maps, and of small ones
    assert sum(sizes) == 5 * len(KINDS)


@pytest.mark.parametrize(
    ("told", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul\n", "580.65.06"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  590.10  Release\n", "590.10"),
        ("something else", "cuda-13000"),
        (None, "cuda-13000"),
    ],
)
def test_the_version_of_the_driver(told, version, tmp_path, monkeypatch):
    monkeypatch.setattr(torch._C, "_cuda_getDriverVersion", lambda: 13000, raising=False)
    monkeypatch.setattr(findings, "_DRIVER", tmp_path / "version")
    if told is not None:
        (tmp_path / "version").write_text(told)
    assert findings.driver_version() == version


def test_cards_of_one_kind_are_checked_each(monkeypatch, tmp_path):
    """What is fastest on one is on the other; that its kernels are right is not."""
    monkeypatch.setenv("EFFV2_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(findings, "_findings", {})
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA Test 9000")
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=f"card-{device.index}")
    )
    one, other = (findings.findings_of(torch.device("cuda", number)) for number in (0, 1))
    assert findings.findings_of(torch.device("cuda", 0)) is one is not other
    assert one.times(RivalBlock).path == other.times(RivalBlock).path
    assert one.errors(RivalBlock).path != other.errors(RivalBlock).path
    assert "card-1" in other.errors(RivalBlock).path.name
    assert findings.findings_of(CPU).errors(RivalBlock).path is None
