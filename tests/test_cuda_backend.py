"""Where the CUDA kernels can run, and what is said elsewhere; with a module and a GPU that are made up."""

import logging
import re
import sys
from types import SimpleNamespace

import pytest
import torch
from models import TINY

from effv2_kernels import backends, optimize
from effv2_kernels.backends import can_run, choose
from effv2_kernels.cli import models
from effv2_kernels.errors import InputError, UnavailableError
from effv2_kernels.ops import decomposition

GPU = torch.device("cuda:0")
OLD_DRIVER = "the NVIDIA driver knows CUDA 12.4; CUDA 13.0 needs an NVIDIA driver from 580 on"


def module(**changes):
    """A wheel's module, as it answers beside a GPU that it can use."""
    answers = {"emulated": False, "ARCHITECTURES": "80 86 89 90 100 120", "why_not": lambda: ""}
    return SimpleNamespace(**{**answers, **changes})


@pytest.fixture(autouse=True)
def wheel(monkeypatch):
    """Puts a module in the place of whatever this build has; None is a wheel without one."""
    backends._warn_once.cache_clear()

    def put(made):
        monkeypatch.setitem(sys.modules, "effv2_kernels._cuda", made)

    put(module())
    return put


@pytest.fixture
def gpu(monkeypatch):
    """PyTorch says that there is one, of the capability that the test gives; Triton is there as well."""

    def claim(capability=(9, 0)):
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        monkeypatch.setattr(backends.util, "find_spec", lambda name: name)
        monkeypatch.setattr(backends, "_no_gpu", lambda: "")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA Test")

    claim()
    return claim


def why_not(**options):
    answer = can_run("cuda", **{"dtype": "fp16", "device": GPU, **options})
    assert not answer.ok
    return answer.why


def test_a_gpu_that_can(gpu):
    for dtype in ("fp16", "bf16"):
        assert can_run("cuda", dtype=dtype, device=GPU) == (True, "NVIDIA Test", "sm_90")
        assert choose("cuda", dtype=dtype, device=GPU).backend == "cuda"


def test_a_wheel_without_cuda_kernels(gpu, wheel):
    wheel(None)
    assert why_not().startswith(
        "this build of effv2_kernels has no CUDA kernels; wheels whose version ends in +cu"
    )


def test_a_module_that_cannot_be_loaded(gpu, monkeypatch):
    def fail(name):
        raise ImportError("libstdc++.so.6: version not found")

    monkeypatch.setattr(backends, "import_module", fail)
    assert why_not() == "its CUDA kernels cannot be loaded: libstdc++.so.6: version not found"


def test_a_module_that_lacks_something_else_is_not_hidden(gpu, monkeypatch):
    def fail(name):
        raise ModuleNotFoundError("No module named 'numpy'", name="numpy")

    monkeypatch.setattr(backends, "import_module", fail)
    with pytest.raises(ModuleNotFoundError, match="numpy"):
        can_run("cuda", dtype="fp16", device=GPU)


@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        ("fp32", r"computes in bf16, fp16, not in fp32; in fp32, GPUs compute with backend='triton'"),
        ("int8", r"computes in bf16, fp16, not in int8$"),
    ],
)
def test_dtypes_that_it_has_not(gpu, dtype, message):
    with pytest.raises(UnavailableError, match="cannot run here"):
        choose("cuda", dtype=dtype, device=GPU)
    assert re.search(message, why_not(dtype=dtype))


def test_options_of_the_cpu(gpu):
    assert why_not(isa="avx2") == "isa='avx2' is for the cpu; a GPU has none to choose"
    with pytest.raises(InputError, match="threads=2 is for the cpu"):
        choose("cuda", dtype="fp16", threads=2, device=GPU)


def test_no_driver(gpu, wheel):
    wheel(module(why_not=lambda: "there is no NVIDIA driver; CUDA 13.0 needs an NVIDIA driver from 580 on"))
    assert "there is no NVIDIA driver; CUDA 13.0 needs an NVIDIA driver from 580 on" in why_not()


def test_a_driver_that_is_too_old_for_the_runtime(gpu, wheel):
    wheel(module(why_not=lambda: OLD_DRIVER))
    with pytest.raises(UnavailableError, match="from 580 on"):
        choose("cuda", dtype="fp16", device=GPU)


def test_no_gpu(gpu, monkeypatch):
    monkeypatch.setattr(backends, "_no_gpu", lambda: "this PyTorch is built without CUDA")
    assert why_not() == "this PyTorch is built without CUDA"


def test_a_model_on_the_cpu(gpu):
    assert why_not(device=torch.device("cpu")) == "the model is on cpu; move it to the GPU with .to('cuda')"


def test_a_gpu_that_is_too_old(gpu):
    gpu((7, 5))
    assert why_not().startswith("NVIDIA Test has compute capability 7.5, and the CUDA kernels need 8.0")


@pytest.mark.parametrize(
    ("compiled", "capability", "runs"),
    [
        ("80 86 89 90 100 120", (8, 7), True),  # code for 8.6
        ("80 86 89 90 100 120", (10, 3), True),
        ("80 86 89 90 100 120", (11, 0), False),
        ("80 86 89 90 100 120", (13, 0), True),  # compiled by the driver
        ("90", (8, 6), False),
        ("90", (9, 0), True),
    ],
)
def test_what_it_is_compiled_for(gpu, wheel, compiled, capability, runs):
    gpu(capability)
    wheel(module(ARCHITECTURES=compiled))
    assert can_run("cuda", dtype="fp16", device=GPU).ok is runs
    if not runs:
        major, minor = capability
        assert f"has compute capability {major}.{minor}, and its CUDA kernels are compiled for" in why_not()


def test_the_emulator_is_for_the_cpu(gpu, wheel):
    wheel(module(emulated=True))
    assert can_run("cuda", dtype="bf16").isa == "emulator"
    assert why_not() == "its CUDA kernels are built for an emulator on the CPU, for tests"


def test_auto_lets_both_compete(gpu, caplog):
    with caplog.at_level(logging.WARNING):
        choice = choose(dtype="fp16", device=GPU)
    assert (choice.backend, choice.isa) == ("auto", "sm_90")
    assert choice.why == "NVIDIA Test; each block by triton, or by cuda where that was measured to be faster"
    assert not caplog.records


def test_auto_takes_triton_with_an_old_driver_and_says_so_once(gpu, wheel, caplog):
    wheel(module(why_not=lambda: OLD_DRIVER))
    with caplog.at_level(logging.WARNING):
        choices = {choose(dtype=dtype, device=GPU) for dtype in ("fp16", "bf16", "fp16")}
    assert {choice.backend for choice in choices} == {"triton"}
    assert all(f"without cuda: its CUDA kernels cannot run: {OLD_DRIVER}" in choice.why for choice in choices)
    (record,) = caplog.records
    assert record.getMessage() == (
        f"on NVIDIA Test Triton's kernels run alone: its CUDA kernels cannot run: {OLD_DRIVER}."
    )


def test_auto_takes_triton_where_nothing_is_to_be_mended(gpu, wheel, caplog):
    """Nobody asked for them, so an absent module and float32 are worth no warning."""
    with caplog.at_level(logging.WARNING):
        assert choose(dtype="fp32", device=GPU).backend == "triton"
        wheel(None)
        choice = choose(dtype="fp16", device=GPU)
    assert choice.backend == "triton"
    assert "without cuda: this build of effv2_kernels has no CUDA kernels" in choice.why
    assert not caplog.records


def test_auto_needs_triton(gpu, monkeypatch):
    monkeypatch.setattr(backends.util, "find_spec", lambda name: None)
    with pytest.raises(UnavailableError, match=r"pip install 'effv2_kernels\[gpu\]'"):
        choose(dtype="fp16", device=GPU)


def test_ops_stay_opaque_for_the_compiler_where_cuda_kernels_may_run(gpu, wheel):
    x = SimpleNamespace(is_cuda=True, dtype=torch.float16, device=GPU)
    assert not decomposition.runs_kernels(x)
    assert decomposition.runs_kernels(SimpleNamespace(is_cuda=True, dtype=torch.float32, device=GPU))
    wheel(None)
    assert decomposition.runs_kernels(x)


def test_optimize_refuses_before_anything_is_packed(wheel):
    wheel(None)
    model = TINY.build(torch.Generator().manual_seed(1))
    with pytest.raises(UnavailableError, match=r"backend='cuda', dtype='fp16' cannot run here: this build"):
        optimize(model, backend="cuda", dtype="fp16")


def test_the_command_line_asks_before_it_moves_a_model(wheel, monkeypatch):
    args = SimpleNamespace(device="cuda", backend="cuda", dtype="fp16")
    monkeypatch.setattr(backends, "_no_gpu", lambda: "this PyTorch is built without CUDA")
    with pytest.raises(UnavailableError, match="this PyTorch is built without CUDA"):
        models._device(args, {"backend": "cuda", "dtype": "fp16"})
    with pytest.raises(InputError, match="--device takes cpu, cuda or cuda:1, but got 'gpu'"):
        models._device(SimpleNamespace(device="gpu"), {})
