"""What can run where: the names of backends, dtypes and ISAs, and the one question asked of each."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module, util
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from effv2_kernels.errors import InputError, UnavailableError, UnknownNameError

if TYPE_CHECKING:
    from effv2_kernels.blocks import Block

_log = logging.getLogger(__name__)

BACKENDS = ("cpu", "triton", "cuda")
DTYPES = ("fp32", "bf16", "fp16", "int8")

# The dtypes that exist in PyTorch, of which the inputs and outputs of a model are.
TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DTYPE_NAMES = {torch_dtype: name for name, torch_dtype in TORCH_DTYPES.items()}

# The instruction sets that builds of this package may have, but for portable code, and whose they are.
_ARCHITECTURES = {"avx512": "x86-64", "avx2": "x86-64", "neon": "64-bit Arm"}

# What a dtype needs that not every processor has.
NEEDS = {
    "bf16": "on a CPU bf16 needs AVX-512 or AVX2; GPUs run it as well",
    "fp16": "on a CPU fp16 needs a 64-bit Arm processor with arithmetic in half precision (FEAT_FP16, from "
    "Armv8.2 on); GPUs run it as well",
}

# What a dtype means on the CPU, for who might expect more of it.
_NOTES = {"bf16": ". Weights and maps are kept in bf16 and computed in float32: half the memory, not faster"}

# What the compiled module counts them in holds no more.
MOST_THREADS = 2**31 - 1

# Of the kernels in CUDA C++: tensor cores.
_CUDA_DTYPES = ("bf16", "fp16")

# The least that Triton supports, and that the kernels in CUDA C++ are compiled for.
_LEAST_CAPABILITY = (8, 0)
_LEAST_TORCH = (2, 10)

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Settings:
    """How a model is to run, as its maker asked.

    backend: "auto" or one of BACKENDS. dtype: one of DTYPES. isa, threads: of the CPU, None for the default.
    cuda_graph: whether a GPU may replay captured graphs.
    """

    backend: str = "auto"
    dtype: str = "fp32"
    isa: str | None = None
    threads: int | None = None
    cuda_graph: bool = True

    def choose(self, device: torch.device) -> Choice:
        """See ``choose``."""
        return choose(self.backend, dtype=self.dtype, isa=self.isa, threads=self.threads, device=device)


@dataclass(frozen=True)
class Choice:
    """A backend that can run, with the reasons that ``explain`` prints."""

    backend: str  # one of BACKENDS, or "auto" where each block has one of several
    dtype: str
    isa: str  # of a GPU its compute capability, such as "sm_90"
    why: str


class Answer(NamedTuple):
    """Of a backend that was asked whether it can run."""

    ok: bool
    why: str  # why not, or why this ISA
    isa: str = ""  # what it runs on


def can_run(
    backend: str, *, dtype: str = "fp32", isa: str | None = None, device: torch.device = CPU
) -> Answer:
    """Whether a backend can run here, and why not, or what was chosen.

    backend: one of BACKENDS. dtype: one of DTYPES. isa: an instruction set of the CPU backend, None for
    the environment variable EFFV2_FORCE_ISA or else the best one of this machine. device: where the model is.

    Raises UnknownNameError for a name that does not exist.
    """
    if backend not in BACKENDS:
        raise UnknownNameError.of("backend", backend, ("auto", *BACKENDS))
    if dtype not in DTYPES:
        raise UnknownNameError.of("dtype", dtype, DTYPES)
    if backend == "cpu":
        return _can_run_cpu(dtype, isa, device)
    if backend == "triton":
        return _can_run_triton(dtype, isa, device)
    return _can_run_cuda(dtype, isa, device)


def _can_run_cpu(dtype: str, isa: str | None, device: torch.device) -> Answer:
    if device.type != "cpu":
        return Answer(False, f"the model is on {device}; move it with .to('cpu')")
    from effv2_kernels import cpu

    native = cpu.native()
    if isa is None:
        chosen, why = cpu.default_isa(), _why_default()
    elif isa not in known_isas():
        raise UnknownNameError.of("ISA", isa, known_isas())
    elif isa not in native.available_isas():
        return Answer(False, why_not_isa(isa))
    else:
        chosen, why = isa, "asked for"
    formats = native.formats(chosen)
    if dtype not in formats:
        why_not = f"on {chosen} the cpu backend runs {' and '.join(formats)}, not {dtype}"
        others = [name for name in native.available_isas() if dtype in native.formats(name)]
        if others:
            why_not += f"; on this processor {' and '.join(others)} would"
        elif dtype in NEEDS:
            why_not += f"; {NEEDS[dtype]}"
        return Answer(False, why_not)
    return Answer(True, why + _NOTES.get(dtype, ""), chosen)


def known_isas() -> list[str]:
    """Those that any build of this package knows, and those of this one."""
    from effv2_kernels import cpu

    return list(dict.fromkeys([*cpu.native().isas(), *_ARCHITECTURES]))


def why_not_isa(isa: str) -> str:
    """Why one of ``known_isas`` cannot run here, and which can."""
    from effv2_kernels import cpu

    native = cpu.native()
    able = ", ".join(native.available_isas())
    if isa in native.isas():
        name = native.cpu_name()
        return f"this processor ({name}) or its operating system cannot run {isa}; it can run {able}"
    return (
        f"{isa} is an instruction set of {_ARCHITECTURES[isa]} processors, and this package is built for "
        f"others; this one ({native.cpu_name()}) can run {able}"
    )


def model_dtypes(device: torch.device) -> list[torch.dtype]:
    """Those that a model on a device may be of, though not every processor of its kind runs each.

    No x86 computes in float16.
    """
    dtypes = list(DTYPE_NAMES)
    if device.type == "cpu":
        from effv2_kernels import cpu

        if "neon" not in cpu.native().isas():
            dtypes.remove(torch.float16)
    return dtypes


def _why_default() -> str:
    from effv2_kernels import cpu

    if cpu.forced_isa() is not None:
        return "forced by EFFV2_FORCE_ISA"
    return f"the best of {', '.join(cpu.native().available_isas())}"


def _can_run_triton(dtype: str, isa: str | None, device: torch.device) -> Answer:
    if isa is not None:
        return Answer(False, f"isa={isa!r} is for the cpu; a GPU has none to choose")
    if dtype not in TORCH_DTYPES:
        return Answer(False, f"the triton backend computes in {', '.join(TORCH_DTYPES)}, not in {dtype}")
    if util.find_spec("triton") is None:
        return Answer(False, "Triton is not installed; install it with: pip install 'effv2_kernels[gpu]'")
    if interpreted() and device.type == "cpu":
        why = "TRITON_INTERPRET=1, for tests; thousands of times slower than a GPU"
        return Answer(True, why, "interpreter")
    return _can_run_on_gpu("Triton needs", device)


def _can_run_cuda(dtype: str, isa: str | None, device: torch.device) -> Answer:
    if isa is not None:
        return Answer(False, f"isa={isa!r} is for the cpu; a GPU has none to choose")
    if dtype not in _CUDA_DTYPES:
        others = "; in fp32, GPUs compute with backend='triton'" if dtype == "fp32" else ""
        return Answer(
            False, f"the cuda backend computes in {', '.join(_CUDA_DTYPES)}, not in {dtype}{others}"
        )
    module, why_not = cuda_module()
    if why_not:
        return Answer(False, why_not)
    if module.emulated and device.type == "cpu":
        return Answer(True, "an emulator of a GPU, for tests; thousands of times slower than one", "emulator")
    answer = _can_run_on_gpu("the CUDA kernels need", device)
    if not answer.ok:
        return answer
    if module.emulated:
        return Answer(False, "its CUDA kernels are built for an emulator on the CPU, for tests")
    why_not = module.why_not()
    if why_not:
        return Answer(False, f"its CUDA kernels cannot run: {why_not}")
    capability = int(answer.isa.removeprefix("sm_"))
    compiled = sorted(map(int, module.ARCHITECTURES.split()))
    # Code for one runs on newer ones of the same generation; that for the newest is also there to be
    # compiled.
    fits = any(one <= capability and one // 10 == capability // 10 for one in compiled)
    if not fits and capability < compiled[-1]:
        shown = ", ".join(f"{one // 10}.{one % 10}" for one in compiled)
        return Answer(
            False,
            f"{answer.why} has compute capability {capability // 10}.{capability % 10}, and its CUDA kernels "
            f"are compiled for {shown}",
        )
    return answer


def cuda_module() -> tuple[Any, str]:
    """The compiled CUDA kernels, or None and why there are none."""
    name = "effv2_kernels._cuda"
    try:
        return import_module(name), ""
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        return None, (
            "this build of effv2_kernels has no CUDA kernels; wheels whose version ends in +cu and a number "
            "have them, and EFFV2_CUDA=1 pip wheel . builds one"
        )
    except ImportError as error:
        return None, f"its CUDA kernels cannot be loaded: {error}"


def _can_run_on_gpu(needs: str, device: torch.device) -> Answer:
    """Whether there is such a GPU, new enough, with a PyTorch that can use it."""
    why_not = _no_gpu() or (
        f"the model is on {device}; move it to the GPU with .to('cuda')" if device.type != "cuda" else ""
    )
    if why_not:
        return Answer(False, why_not)
    major, minor = torch.cuda.get_device_capability(device)
    name = torch.cuda.get_device_name(device)
    if (major, minor) < _LEAST_CAPABILITY:
        return Answer(
            False,
            f"{name} has compute capability {major}.{minor}, and {needs} "
            f"{'.'.join(map(str, _LEAST_CAPABILITY))}; backend='cpu' runs on the processor",
        )
    return Answer(True, name, f"sm_{major}{minor}")


def _no_gpu() -> str:
    """Why PyTorch sees no GPU that kernels can use here, "" where it does."""
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < _LEAST_TORCH:
        least = ".".join(map(str, _LEAST_TORCH))
        return f"on GPUs it needs PyTorch {least} or newer, and this is {torch.__version__}"
    if torch.version.hip is not None:
        return "the kernels use instructions of NVIDIA's GPUs, and this PyTorch is built for AMD's"
    if torch.version.cuda is None:
        return "this PyTorch is built without CUDA; install one that is, see pytorch.org"
    if not torch.cuda.is_available():
        return (
            f"PyTorch {torch.__version__} finds no NVIDIA GPU or no driver for CUDA {torch.version.cuda}; "
            f"nvidia-smi says whether there is one, and CUDA_VISIBLE_DEVICES may hide it"
        )
    return ""


def require_kernels(backend: str, network: Iterable[Block]) -> None:
    """Raise UnavailableError, with its name, where a backend has no kernel for one of these blocks."""
    from effv2_kernels import cpu
    from effv2_kernels.gpu.kernels import kernels_of

    kernels = cpu if backend == "cpu" else kernels_of(backend)
    for block in network:
        what = kernels.refusal(block)
        if what is not None:
            raise UnavailableError(
                f"the {backend} backend has no kernel for {what}. optimize(model, strict=False) leaves such "
                f"parts in PyTorch."
            )


def interpreted() -> bool:
    """Whether Triton's kernels run on the CPU, in its interpreter."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def check_threads(threads: object) -> None:
    """Raise InputError for what is no number of threads."""
    if threads is None:
        return
    if type(threads) is not int or threads < 1:
        raise InputError(f"threads must be a positive integer or None, but got {threads!r}.")
    if threads > MOST_THREADS:
        raise InputError(
            f"threads must be a positive integer of at most {MOST_THREADS} or None, but got {threads}; more "
            f"than this machine has processors are never faster."
        )


def choose(
    backend: str = "auto",
    *,
    dtype: str = "fp32",
    isa: str | None = None,
    threads: int | None = None,
    device: torch.device = CPU,
) -> Choice:
    """The backend, dtype and ISA that run a model on ``device``.

    "auto" is cpu there. On a CUDA GPU it is triton, or stays "auto" where cuda can run as well: then each
    block is run by the one of them that was measured to be faster, see ``effv2_kernels.gpu.choice``.

    Raises UnknownNameError for a name that does not exist, UnavailableError, with the reason, for a
    combination that cannot run here, and InputError for less than one thread, for more than MOST_THREADS, or
    for threads on a GPU. Nothing is ever replaced by something that was not asked for.
    """
    check_threads(threads)
    if backend == "auto" and device.type not in ("cpu", "cuda"):
        raise UnavailableError(
            f"this model is on {device}, for which there is no backend. Move it with .to('cpu') or "
            f".to('cuda')."
        )
    wanted = {"cpu": "cpu", "cuda": "triton"}[device.type] if backend == "auto" else backend
    answer = can_run(wanted, dtype=dtype, isa=isa, device=device)
    if not answer.ok:
        asked: dict[str, Any] = {"backend": backend, "dtype": dtype, "isa": isa}
        shown = ", ".join(f"{name}={value!r}" for name, value in asked.items() if value is not None)
        raise UnavailableError(f"{shown} cannot run here: {answer.why}.")
    if wanted != "cpu" and threads is not None:
        raise InputError(f"threads={threads} is for the cpu; leave it out for a model on {device}.")
    if backend == "auto" and wanted == "triton":
        return _mixed(dtype, device, answer)
    return Choice(wanted, dtype, answer.isa, answer.why)


def _mixed(dtype: str, device: torch.device, triton: Answer) -> Choice:
    """Triton's kernels, and those in CUDA C++ where they can run."""
    cuda = can_run("cuda", dtype=dtype, device=device)
    if cuda.ok:
        why = f"{triton.why}; each block by triton, or by cuda where that was measured to be faster"
        return Choice("auto", dtype, triton.isa, why)
    if dtype in _CUDA_DTYPES and cuda_module()[0] is not None:
        _warn_once(f"on {triton.why} Triton's kernels run alone: {cuda.why}.")
    return Choice("triton", dtype, triton.isa, f"{triton.why}; without cuda: {cuda.why}")


@lru_cache
def _warn_once(message: str) -> None:
    _log.warning("%s", message)
