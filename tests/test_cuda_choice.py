"""The CUDA kernels beside Triton's, both run on the CPU: chosen, checked, refused, and in one launch."""

import dataclasses
import functools
import logging
import os

import pytest
import torch
from checks import HALF_NETWORK_BOUND, assert_close, exact_network, one_torch_thread, relative_l2, seeded
from models import SMALL, SMALL_MOBILE, TINY

if not os.environ.get("EFFV2_TEST_CUDA"):
    pytest.skip("make test-cuda-emulated runs these", allow_module_level=True)
pytest.importorskip("triton")

from effv2_kernels import _cuda, create_model, explain, optimize, shapes, sources
from effv2_kernels.__main__ import main
from effv2_kernels.cli import models
from effv2_kernels.cuda import launch as cuda_launch
from effv2_kernels.cuda.launch import Launch
from effv2_kernels.errors import ResolutionError, UnavailableError
from effv2_kernels.gpu import comparison, engine, parity, planner, tuning
from effv2_kernels.gpu.alternatives import Alternative
from effv2_kernels.gpu.engine import Engine
from effv2_kernels.gpu.findings import Findings
from effv2_kernels.gpu.kernels import kernels_of
from effv2_kernels.gpu.launch import FeatureMap, LaunchError
from effv2_kernels.gpu.one_launch import MOST_IMAGES
from effv2_kernels.gpu.resources import SHARED_BYTES, Resources
from effv2_kernels.triton.launch import Launch as TritonLaunch

CPU = torch.device("cpu")
ORIGINAL_COMPILE = Launch.compile
NETWORK = sources.read(TINY.build(seeded(100)))
KINDS = [block.kind for block in NETWORK.blocks]
FFN, ATTENTION = KINDS.index("ffn"), KINDS.index("attention")


@pytest.fixture(autouse=True)
def findings(monkeypatch, tmp_path):
    """Of a GPU that nothing is known of; a list, whose last is in use."""
    monkeypatch.setenv("EFFV2_CACHE_DIR", str(tmp_path))
    _cuda.configure()
    found = [Findings("NVIDIA Test 9000", "580.65")]
    monkeypatch.setattr(planner, "findings_of", lambda device: found[-1])
    with one_torch_thread():
        yield found


@pytest.fixture
def clock(monkeypatch):
    """What tune() measures: CUDA is twice as fast as Triton, by channels most of all, and in one launch."""
    times = {"triton": 2.0, "cuda": 1.0, "part=widen": 0.5, "one launch": 3.0, "launches": 4.0}

    def of(launches, tiles):
        keys = " ".join([launches[0].backend, *(launch.key for launch in launches)])
        return [ms for name, ms in times.items() if name in keys][-1]

    monkeypatch.setattr(engine, "require_gpu", lambda device: None)
    monkeypatch.setattr(tuning, "milliseconds", lambda launch, tile: 1.0 + launch.tiles.index(tile))
    monkeypatch.setattr(tuning, "compile_missing", lambda pairs: None)
    for kind in (Launch, TritonLaunch):
        monkeypatch.setattr(kind, "compile", lambda launch, tile: Resources(64, 0, 1024))
    monkeypatch.setattr(comparison, "milliseconds_of_launches", of)
    monkeypatch.setattr(
        comparison,
        "milliseconds_of_plan",
        lambda plan, x: times["one launch" if "one launch" in plan.key else "launches"],
    )
    return times


def made(backend, network=NETWORK, dtype=torch.float16):
    return Engine(network, kernels_of(backend), dtype, CPU)


def images(batch=1, dtype=torch.float16):
    return TINY.images(seeded(101), batch).to(dtype)


def right(found, x=None, network=NETWORK):
    x = images() if x is None else x
    for y, expected in zip(found.run(x), exact_network(network, x), strict=True):
        assert_close(y, expected, HALF_NETWORK_BOUND, dtype=x.dtype)
    return found


def tuned(backend, x=None):
    found = made(backend)
    found.tune(images() if x is None else x, lambda what, share: None)
    return found


def decisions(found):
    return found.decisions(32, 32)


def row(found):
    return found.one_launch(32, 32)


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


def wrong(monkeypatch, kind):
    """The kernel of one kind makes one value wrong."""
    original = Launch.run

    def run(launch, tile, memory):
        original(launch, tile, memory)
        if launch.kind == kind:
            memory[launch.output][:1] = 100.0

    monkeypatch.setattr(Launch, "run", run)


def test_a_wrong_kernel_is_refused_by_auto(clock, monkeypatch, caplog):
    clock["one launch"] = 9.0
    wrong(monkeypatch, "attention")
    with caplog.at_level(logging.WARNING):
        found = right(tuned("auto"))
    assert decisions(found)[ATTENTION].backend == "triton"
    assert "cuda failed its check: relative error" in decisions(found)[ATTENTION].why
    assert decisions(found)[0].backend == "cuda"
    (record,) = caplog.records
    assert (
        "cuda (cuda_depthwise, cuda_product, cuda_attention) is not used on this GPU" in record.getMessage()
    )


def test_a_wrong_kernel_is_refused_by_name(monkeypatch):
    wrong(monkeypatch, "attention")
    with pytest.raises(
        UnavailableError, match=r"no kernel for block 4 can be used on this GPU .*cuda failed its check"
    ):
        made("cuda").run(images(2))


def test_a_wrong_one_launch_is_refused(clock, monkeypatch, caplog):
    original = _cuda.launch_network

    def launch_network(format, fields, *rest):
        original(format, {**fields, "tasks": fields["tasks"] - 1}, *rest)

    monkeypatch.setattr(_cuda, "launch_network", launch_network)
    with caplog.at_level(logging.WARNING):
        found = right(tuned("auto"))
    assert not row(found).used
    assert row(found).why.endswith("failed its check: relative error nan, and rounding explains 0.02")
    assert "the network is not run in one launch on this GPU" in caplog.text
    assert {d.backend for d in decisions(found)} == {"cuda"}


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


def test_a_size_that_does_not_fit():
    with pytest.raises(ResolutionError, match="fit inputs of 17-32 rows"):
        made("cuda").run(torch.zeros(1, 3, 33, 32, dtype=torch.float16))


def test_more_pixels_than_an_int_holds():
    m = FeatureMap(2**20, 64, 64, 8, torch.float16)
    message = (
        rf"at most 2147483392 pixels in all images, and this one has {2**32} \(1048576 images of 64x64\)"
    )
    packed = kernels_of("cuda").pack(NETWORK.blocks[FFN], torch.float16, CPU)
    with pytest.raises(UnavailableError, match=message):
        packed.plan(m, "ieee")
    head = kernels_of("cuda").pack(
        shapes.random_block(shapes.conv(8, 8, 4, 4), seeded(107)), torch.float16, CPU
    )
    with pytest.raises(UnavailableError, match=message):
        head.plan(m, "ieee")
    mixed = kernels_of("auto").pack(NETWORK.blocks[FFN], torch.float16, CPU)
    usual, refused = mixed.alternatives(m, "ieee")
    assert usual.backend == "triton"
    assert (refused.backend, refused.launches) == ("cuda", ())
    assert "pixels in all images" in refused.why_not


def test_a_launch_that_is_refused(monkeypatch):
    """At the call that caused it; the next one is as if nothing had been."""
    found = right(made("cuda"), images(2))
    error = _cuda.CudaError

    def launch(step, buffers, stream):
        raise error("product fp16: cudaErrorLaunchOutOfResources: too many resources requested for launch")

    with monkeypatch.context() as broken:
        broken.setattr(_cuda, "launch", launch)
        with pytest.raises(UnavailableError, match=r"cuda_stem .* could not be launched: .*OutOfResources"):
            found.run(images(2))
    right(found, images(2))


def test_the_one_launch_that_is_refused(monkeypatch):
    found = right(made("cuda"))
    with monkeypatch.context() as broken:

        def launch(*_):
            raise _cuda.CudaError("network fp16: cudaErrorNotSupported: a failure")

        broken.setattr(_cuda, "launch_network", launch)
        with pytest.raises(
            UnavailableError, match="the one launch of the network could not be launched: network"
        ):
            found.run(images())
    right(found)


def out_of_memory(*_):
    raise _cuda.CudaError("stem fp16: cudaErrorMemoryAllocation: out of memory")


def test_memory_that_a_launch_lacks_is_memory_that_pytorch_lacks(monkeypatch):
    """So graphs give way, and the call is tried again."""
    found = right(made("cuda"), images(2))
    monkeypatch.setattr(_cuda, "launch", out_of_memory)
    with pytest.raises(torch.OutOfMemoryError, match="cudaErrorMemoryAllocation"):
        found.run(images(2))
    given_back = []
    monkeypatch.setattr(found, "_drop_graphs", lambda: given_back.append(1) or monkeypatch.undo() or True)
    right(found, images(2))
    assert given_back


def test_memory_that_loading_a_kernel_lacks(monkeypatch, clock):
    """Kernels come to the GPU when first asked for. Triton's run, or the call says what is lacking."""
    tuned("auto")
    monkeypatch.setattr(Launch, "compile", ORIGINAL_COMPILE)
    monkeypatch.setattr(Launch, "interpreted", False)
    monkeypatch.setattr(_cuda, "resources", out_of_memory, raising=False)
    launch = kernels_of("cuda").pack(NETWORK.blocks[0], torch.float16, CPU).plan(
        FeatureMap(1, 32, 32, 3, torch.float16), "ieee"
    )[0]  # fmt: skip
    with pytest.raises(torch.OutOfMemoryError, match=r"cuda_stem \(.*cudaErrorMemoryAllocation"):
        launch.compile(launch.tiles[0])
    found = right(made("auto"))
    assert {d.backend for d in decisions(found)} == {"triton"}
    assert "not checked: there was too little free memory for it" in decisions(found)[0].why
    with pytest.raises(torch.OutOfMemoryError, match="cudaErrorMemoryAllocation"):
        made("cuda").run(images(2))


def test_a_kernel_that_failed_takes_the_gpu_along(monkeypatch):
    """Which is said, and no other process tries the kernel that was being checked."""
    found = right(made("cuda"), images(2))

    def launch(*_):
        raise _cuda.CudaError("product fp16: cudaErrorIllegalAddress: an illegal memory access")

    monkeypatch.setattr(_cuda, "launch", launch)
    with pytest.raises(UnavailableError, match=r"since a kernel before it failed: .* start it again"):
        found.run(images(2))


def test_a_check_that_ends_the_use_of_the_gpu(monkeypatch, findings):
    def error(*_):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with monkeypatch.context() as broken:
        broken.setattr(parity.Checks, "_error", error)
        with pytest.raises(UnavailableError, match=r"kernel failed \(cuda_stem .*start the process"):
            made("cuda").run(images(2))
    findings.append(Findings("NVIDIA Test 9000", "580.65"))  # another process
    with pytest.raises(UnavailableError, match="cuda failed its check: relative error nan"):
        made("cuda").run(images(2))


def test_tuning_goes_on_behind_a_launch_that_is_refused(monkeypatch, clock, caplog):
    """Of a kernel that Triton's stand in for; that backend alone has nothing to go on with."""
    clock["one launch"] = 9.0

    def milliseconds(launch, tile):
        if launch.name == "cuda_attention":
            raise LaunchError("cuda_attention could not be launched: cudaErrorInvalidValue")
        return 1.0 + launch.tiles.index(tile)

    def of(launches, tiles):
        if any(launch.name == "cuda_depthwise" for launch in launches):
            raise LaunchError("cuda_depthwise could not be launched: cudaErrorInvalidValue")
        return {"triton": 2.0, "cuda": 1.0}[launches[0].backend]

    monkeypatch.setattr(tuning, "milliseconds", milliseconds)
    monkeypatch.setattr(comparison, "milliseconds_of_launches", of)
    with caplog.at_level(logging.WARNING):
        found = right(tuned("auto"))
    assert "cuda_attention (4 heads query_tiles=1) was not measured: cuda_attention could not" in caplog.text
    assert "cuda was not measured: cuda_depthwise could not be launched" in caplog.text
    assert decisions(found)[ATTENTION].backend == "triton"
    assert decisions(found)[0].backend == "cuda"


def test_a_wrong_scale_of_an_output_is_refused(monkeypatch, findings):
    network = sources.read(
        SMALL[0].build(seeded(104), num_classes=0, features_only=True, feature_norms=(True,) * 4)
    )
    x = SMALL[0].images(seeded(105), 2).half()
    right(made("cuda", network), x, network)
    _cuda.configure()
    wrong(monkeypatch, "feature")
    findings.append(Findings("another"))
    with pytest.raises(
        UnavailableError, match="no kernel for the scale of an output can be used on this GPU"
    ):
        made("cuda", network).run(x)


def test_an_output_that_is_returned_twice():
    plan = made("cuda")._planner.outline(planner.Images.like(images(), "ieee"))
    with pytest.raises(UnavailableError, match="one launch returns at most 13 maps, each once, and not 2"):
        Launch.join(plan.launches, plan.image, [*plan.outputs] * 2, CPU)


def test_a_model_that_moved_is_planned_anew():
    """As to another GPU: on memory, and with kernels, of that one."""
    fast = optimize(TINY.build(seeded(100)), backend="cuda", dtype="fp16")
    expected, before = fast(images()), fast.engine
    fast._apply(torch.clone)
    assert fast.engine is not before
    assert torch.equal(fast(images()), expected)


def test_no_tile_fits_the_shared_memory(monkeypatch):
    """The message names the kernel and its bytes."""
    packed = kernels_of("cuda").pack(NETWORK.blocks[ATTENTION], torch.float16, CPU)
    launch = next(
        ln for ln in packed.plan(FeatureMap(1, 2, 2, 16, torch.float16), "ieee") if ln.kind == "attention"
    )
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA Test 9000")
    monkeypatch.setattr(cuda_launch, "shared_of_gpu", lambda: 1000)
    assert launch.compile(launch.tiles[0]) is None
    least = min(launch.shared_bytes(tile) for tile in launch.tiles)
    message = rf"of cuda_attention fits .* GPU \(NVIDIA Test 9000\): the smallest needs {least} bytes of it"
    with pytest.raises(UnavailableError, match=message):
        tuning.best_unmeasured(launch)


def test_the_shared_memory_of_a_gpu(monkeypatch):
    """As the driver tells; where there is none, that of the largest."""
    assert cuda_launch.shared_of_gpu() == 232448
    for told, most in ((101376, 101376), (0, 232448)):
        monkeypatch.setattr(_cuda, "most_shared_bytes", lambda told=told: told)
        assert cuda_launch.shared_of_gpu() == most


@functools.cache
def packed_network(variant):
    network = sources.read(create_model(f"efficientformerv2_{variant}"))
    return [kernels_of("cuda").pack(block, torch.float16, CPU) for block in network.blocks]


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 100, 120])
@pytest.mark.parametrize("variant", ["s0", "l"])
def test_tiles_fit_every_gpu(variant, capability, monkeypatch):
    """Every launch has some, and nothing is planned that has none; so has the one launch."""
    most = SHARED_BYTES[capability]
    monkeypatch.setattr(cuda_launch, "shared_of_gpu", lambda: most)
    packed = packed_network(variant)
    for batch in (1, 8, 256):
        x = FeatureMap(batch, 224, 224, 3, torch.float16)
        for block in packed:
            alternatives = block.alternatives(x, "ieee")
            for launch in (launch for a in alternatives for launch in a.launches):
                needed = [launch.shared_bytes(tile) for tile in launch.tiles]
                assert needed
                assert max(needed) <= most
            if batch <= MOST_IMAGES:
                assert any(a.joinable for a in alternatives)
            x = alternatives[0].launches[-1].output


def test_a_tile_in_one_launch_fits_the_gpu(monkeypatch):
    """Beside what that launch itself takes: another tile, or none."""
    packed = kernels_of("cuda").pack(NETWORK.blocks[FFN], torch.float16, CPU)
    launch = packed.plan(FeatureMap(1, 8, 8, 24, torch.float16), "ieee")[0]
    first = launch.tile_in_one
    monkeypatch.setattr(
        cuda_launch, "shared_of_gpu", lambda: launch.shared_bytes(first) + _cuda.NETWORK_BYTES
    )
    assert launch.tile_in_one is first
    monkeypatch.setattr(
        cuda_launch, "shared_of_gpu", lambda: launch.shared_bytes(first) + _cuda.NETWORK_BYTES - 1
    )
    smaller = launch.tile_in_one
    assert launch.shared_bytes(smaller) < launch.shared_bytes(first)
    monkeypatch.setattr(cuda_launch, "shared_of_gpu", lambda: 1000)
    assert launch.tile_in_one is None
    assert not Alternative.of([launch]).joinable


def test_an_alternative_that_does_not_fit_gives_way(monkeypatch):
    original = tuning.ready

    def ready(launches, tables):
        if any(
            ln.kind == "ffn" and ln.arguments["part"] == "widen" for ln in launches if isinstance(ln, Launch)
        ):
            raise UnavailableError("none of the 6 tiles of cuda_ffn fits into the shared memory of this GPU")
        return original(launches, tables)

    monkeypatch.setattr(tuning, "ready", ready)
    found = right(made("cuda"), images(2))
    assert decisions(found)[FFN].way == "whole"
    assert "cuda by channels cannot be launched: none of the 6 tiles" in decisions(found)[FFN].why


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
