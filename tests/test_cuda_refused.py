"""CUDA kernels that are wrong or cannot be launched, by the emulator: what runs instead, and what is said."""

import logging

import cuda_engines
import pytest
import torch
from checks import seeded
from cuda_engines import ATTENTION, CPU, FFN, NETWORK, decisions, images, made, right, row, tuned
from models import SMALL

from effv2_kernels import _cuda, shapes, sources
from effv2_kernels.cuda.launch import Launch
from effv2_kernels.errors import ResolutionError, UnavailableError
from effv2_kernels.gpu import comparison, parity, planner, tuning
from effv2_kernels.gpu.findings import Findings
from effv2_kernels.gpu.kernels import kernels_of
from effv2_kernels.gpu.launch import FeatureMap, LaunchError

clock, findings = cuda_engines.clock, cuda_engines.findings  # fixtures

ORIGINAL_COMPILE = Launch.compile


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
