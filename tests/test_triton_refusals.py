"""What models and devices the GPU engine refuses, and why; asked without a GPU."""

from pathlib import Path

import pytest
import torch
from block_shapes import OPTIONS, SHAPES
from checks import seeded
from models import TINY

pytest.importorskip("triton")

from effv2_kernels import backends, blocks, optimize, shapes, triton
from effv2_kernels.errors import InputError, ModelError, UnavailableError
from effv2_kernels.triton.kernels import LIMITS, pack, refusal

GPU = torch.device("cuda:0")


def tiny(**options):
    return optimize(TINY.build(seeded(60)), backend="triton", **{"dtype": "fp16", **options})


@pytest.fixture
def compiled_triton(monkeypatch):
    """The interpreter is left: what counts is the GPU that PyTorch claims."""
    monkeypatch.delenv("TRITON_INTERPRET")


def test_a_pytorch_without_cuda(compiled_triton):
    if torch.version.cuda is not None:
        pytest.skip("this PyTorch is built with CUDA")
    with pytest.raises(UnavailableError, match=r"backend='triton'.*this PyTorch is built without CUDA"):
        tiny()


def test_no_driver(compiled_triton, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UnavailableError, match=r"no NVIDIA GPU or no driver for CUDA 13.0; nvidia-smi"):
        tiny()


def test_a_gpu_of_another_maker(compiled_triton, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "7.0")
    with pytest.raises(UnavailableError, match="built for AMD"):
        tiny()


def test_an_old_pytorch(compiled_triton, monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.9.1+cu128")
    with pytest.raises(UnavailableError, match=r"needs PyTorch 2.10 or newer, and this is 2.9.1\+cu128"):
        tiny()


@pytest.fixture
def a_gpu(compiled_triton, monkeypatch):
    """PyTorch says that there is one, of the capability that the test gives."""

    def claim(capability):
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA Test")

    return claim


def test_a_cpu_model_for_the_gpu(a_gpu):
    a_gpu((9, 0))
    with pytest.raises(UnavailableError, match=r"the model is on cpu; move it to the GPU with .to\('cuda'\)"):
        tiny()


def test_a_gpu_model_for_the_cpu():
    with pytest.raises(UnavailableError, match=r"the model is on cuda:0; move it with .to\('cpu'\)"):
        backends.choose("cpu", device=GPU)


def test_a_gpu_that_is_too_old(a_gpu):
    a_gpu((7, 5))
    with pytest.raises(
        UnavailableError, match=r"NVIDIA Test has compute capability 7.5, and Triton needs 8.0"
    ):
        backends.choose(device=GPU)


def test_a_gpu_that_can(a_gpu):
    a_gpu((9, 0))
    for dtype in backends.TORCH_DTYPES:
        choice = backends.choose(dtype=dtype, device=GPU)
        assert (choice.backend, choice.dtype, choice.isa) == ("triton", dtype, "sm_90")
        assert choice.why.startswith("NVIDIA Test; without cuda: ")


def test_without_triton(monkeypatch):
    monkeypatch.setattr(backends.util, "find_spec", lambda name: None)
    with pytest.raises(UnavailableError, match=r"pip install 'effv2_kernels\[gpu\]'"):
        tiny()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dtype": "int8"}, UnavailableError, "computes in fp32, bf16, fp16, not in int8"),
        ({"dtype": "fp16", "isa": "avx2"}, UnavailableError, "isa='avx2' is for the cpu"),
        ({"dtype": "fp16", "threads": 2}, InputError, "threads=2 is for the cpu"),
    ],
)
def test_options_that_mean_nothing_on_a_gpu(options, error, message):
    with pytest.raises(error, match=message):
        tiny(**options)


# Of block_shapes, what has no kernel: kinds that have none at all are asked for. All others run, see
# test_triton_kernels and test_triton_parts.
MADE = {**SHAPES, **OPTIONS}
WITHOUT_KERNEL = {
    "ffn with silu, 5x5": "ffn with kernel=5",
    "ffn with hardswish, 7x7": "ffn with kernel=7",
    "strided ffn without expansion, 5x5": "ffn with kernel=5",
    "strided conv 7x7": "conv with kernel=7",
    "attention without talking heads": "attention without mix1_weight",
    "attention without bias": "attention without bias",
    "attention without local": "attention without local",
    "strided attention of products alone": "attention without local",
    **{name: shape.kind for name, shape in MADE.items() if shape.kind not in LIMITS},
}


def test_blocks_without_a_kernel_are_refused_by_name():
    made = {name: shapes.random_block(shape, seeded(1)) for name, shape in MADE.items()}
    assert {name: why for name, block in made.items() if (why := refusal(block))} == WITHOUT_KERNEL
    for name, what in WITHOUT_KERNEL.items():
        with pytest.raises(UnavailableError, match=f"the triton backend has no kernel for {what}"):
            pack(made[name], torch.float16, "cpu")


def test_a_block_has_both_kernels_and_limits_or_neither():
    folder = Path(triton.__file__).parent
    assert set(LIMITS) == {kind for kind in blocks.BLOCK_TYPES if (folder / f"{kind}.py").is_file()}


def test_a_device_that_nothing_runs_on():
    with pytest.raises(UnavailableError, match=r"is on xpu:0, for which there is no backend"):
        backends.choose(device=torch.device("xpu:0"))


def test_a_model_of_several_dtypes():
    model = TINY.build(seeded(60))
    model.stem.half()
    with pytest.raises(ModelError, match=r"of one dtype, but 'stem.*' is torch.float16 and 's.* is"):
        optimize(model, backend="triton")
    fast = optimize(model, backend="triton", dtype="fp16")  # asked for, so no guess
    assert fast.choice.dtype == "fp16"
