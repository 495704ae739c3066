"""Everything that can run the model: this package, and what a user could pick instead.

Each gets the settings that its own documentation gives for lowest latency on a CPU in fp32, the same
number of threads, shapes fixed in advance, and inputs and outputs that it may use without copying.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module, metadata, util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from effv2_kernels.errors import UnavailableError, UnknownNameError

# Runs the batch that it was made for, and returns the logits (N, classes) float32.
Runner = Callable[[], Tensor]

# Relative L2 over the logits against the float64 reference, above which a contestant is refused.
OWN_BOUND = 1e-6
RIVAL_BOUND = 1e-4


@dataclass(frozen=True)
class Contestant:
    """``build(model, images, threads)`` gives the Runner and a text that says version and options."""

    name: str
    build: Callable[[nn.Module, Tensor, int], tuple[Runner, str]]
    bound: float = RIVAL_BOUND
    needs: tuple[str, ...] = ()  # importable modules

    def missing(self) -> list[str]:
        """Of the modules that it needs, those that are not installed."""
        return [name for name in self.needs if util.find_spec(name) is None]


def effv2(name: str = "effv2", *, isa: str | None = None, threads: int | None = None) -> Contestant:
    """This package. ``isa`` and ``threads`` override the default ISA and the threads of the comparison."""

    def build(model: nn.Module, images: Tensor, default_threads: int) -> tuple[Runner, str]:
        import effv2_kernels
        from effv2_kernels import cpu

        count = threads or default_threads
        fast = effv2_kernels.optimize(model, isa=isa, threads=count)
        used = isa or cpu.default_isa()
        return _in_inference_mode(fast, images), f"{effv2_kernels.__version__}, {used}, threads={count}"

    return Contestant(name, build, bound=OWN_BOUND)


def _in_inference_mode(model: Callable[[Tensor], Tensor], images: Tensor) -> Runner:
    def run() -> Tensor:
        with torch.inference_mode():
            return model(images)

    return run


def _eager(model: nn.Module, images: Tensor, threads: int) -> tuple[Runner, str]:
    return _in_inference_mode(model, images), f"torch {torch.__version__}, threads={threads}"


def _compiled(model: nn.Module, images: Tensor, threads: int) -> tuple[Runner, str]:
    # Recompilations count per function, and every model of a session shares one.
    torch.compiler.reset()
    compiled = torch.compile(model, dynamic=False, options={"freezing": True})

    def run() -> Tensor:
        # Freezing needs no_grad; under inference_mode the weights are not taken for constants.
        with torch.no_grad():
            output: Tensor = compiled(images)
        return output

    return run, f"torch {torch.__version__}, inductor, freezing, threads={threads}"


def _onnxruntime(model: nn.Module, images: Tensor, threads: int) -> tuple[Runner, str]:
    ort = import_module("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        program = torch.onnx.export(model, (images,), dynamo=True, verbose=False)
        assert program is not None
        program.save(path)
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    output = torch.full((images.shape[0], *session.get_outputs()[0].shape[1:]), torch.nan)
    binding = session.io_binding()
    binding.bind_ortvalue_input(
        session.get_inputs()[0].name, ort.OrtValue.ortvalue_from_numpy(images.numpy())
    )
    binding.bind_ortvalue_output(
        session.get_outputs()[0].name, ort.OrtValue.ortvalue_from_numpy(output.numpy())
    )

    def run() -> Tensor:
        session.run_with_iobinding(binding)
        return output

    return run, f"{ort.__version__}, intra_op_num_threads={threads}"


def _openvino(model: nn.Module, images: Tensor, threads: int) -> tuple[Runner, str]:
    ov = import_module("openvino")
    options = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
    compiled = _openvino_compiled(ov, model, images, threads, options)
    output = torch.full((images.shape[0], compiled.output(0).shape[1]), torch.nan)
    request = _openvino_request(ov, compiled, images, output)

    def run() -> Tensor:
        request.infer()
        return output

    return run, f"{metadata.version('openvino')}, f32, LATENCY, INFERENCE_NUM_THREADS={threads}"


def _openvino_streams(model: nn.Module, images: Tensor, threads: int) -> tuple[Runner, str]:
    ov = import_module("openvino")
    options = {"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": threads}
    compiled = _openvino_compiled(ov, model, images[:1], threads, options)
    output = torch.full((images.shape[0], compiled.output(0).shape[1]), torch.nan)
    # One request per image, all queued at once and each bound to its own memory, keeps every stream busy
    # and runs no Python in between; an AsyncInferQueue was 3 % slower.
    requests = [
        _openvino_request(ov, compiled, images[i : i + 1], output[i : i + 1]) for i in range(len(images))
    ]

    def run() -> Tensor:
        for request in requests:
            request.start_async()
        for request in requests:
            request.wait()
        return output

    return run, (
        f"{metadata.version('openvino')}, f32, THROUGHPUT, INFERENCE_NUM_THREADS={threads}, "
        f"NUM_STREAMS={threads}, one image per request"
    )


def _openvino_compiled(
    ov: Any, model: nn.Module, images: Tensor, threads: int, options: dict[str, Any]
) -> Any:
    converted = ov.convert_model(model, example_input=images, input=[list(images.shape)])
    always = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    compiled = ov.Core().compile_model(converted, "CPU", always | options)
    streams, used = compiled.get_property("NUM_STREAMS"), compiled.get_property("INFERENCE_NUM_THREADS")
    if (streams, used) != (options["NUM_STREAMS"], threads):
        raise UnavailableError(
            f"OpenVINO was asked for {options['NUM_STREAMS']} streams and {threads} threads, but uses "
            f"{streams} and {used}; a comparison would not be fair."
        )
    return compiled


def _openvino_request(ov: Any, compiled: Any, images: Tensor, output: Tensor) -> Any:
    request = compiled.create_infer_request()
    request.set_input_tensor(0, ov.Tensor(images.numpy(), shared_memory=True))
    request.set_output_tensor(0, ov.Tensor(output.numpy(), shared_memory=True))
    return request


CONTESTANTS: dict[str, Contestant] = {
    contestant.name: contestant
    for contestant in (
        effv2(),
        Contestant("eager", _eager),
        Contestant("compile", _compiled),
        Contestant("onnxruntime", _onnxruntime, needs=("onnxruntime", "onnx", "onnxscript")),
        Contestant("openvino", _openvino, needs=("openvino",)),
        Contestant("openvino_streams", _openvino_streams, needs=("openvino",)),
    )
}
RIVALS = tuple(name for name in CONTESTANTS if name != "effv2")
# The two ways to run a batch with OpenVINO; the faster one is the rival.
OPENVINO = "openvino+openvino_streams"


def find(name: str) -> Contestant:
    """Raises UnknownNameError for a name that is not in CONTESTANTS."""
    if name not in CONTESTANTS:
        raise UnknownNameError.of("contestant", name, CONTESTANTS)
    return CONTESTANTS[name]


def installed(names: tuple[str, ...] = RIVALS) -> list[str]:
    """Those of ``names`` whose packages are installed."""
    return [name for name in names if not find(name).missing()]
