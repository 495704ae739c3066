"""People hand a fast model to exporters and converters, which cannot hold the engine's one call."""

import sys
import types

import pytest
import torch
from checks import plain_pytorch, seeded
from models import LEAST, name_of, relative_error

from effv2_kernels import optimize
from effv2_kernels.errors import ExportError, InputError

WHAT_TO_DO = r"cannot take an optimised model.*[Gg]ive it the model that was optimised"


@pytest.fixture(scope="module", params=LEAST, ids=name_of)
def spec(request):
    return request.param


@pytest.fixture(scope="module")
def fast(spec):
    return optimize(spec.build(seeded(651)))


@pytest.fixture(scope="module")
def images(spec):
    return spec.images(seeded(652), 2)


@pytest.mark.situation("`torch.jit.script`", "refused: script the original")
def test_script(fast):
    for what in (fast, torch.nn.Sequential(fast)):
        with pytest.raises(ExportError, match=WHAT_TO_DO):
            torch.jit.script(what)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.situation("`torch.onnx.export`, both exporters", "refused: export the original")
def test_onnx_by_tracing(fast, images, tmp_path):
    with pytest.raises(ExportError, match=WHAT_TO_DO):
        torch.onnx.export(fast, (images,), str(tmp_path / "a.onnx"), dynamo=False)


def test_onnx_by_torch_export(fast, images, tmp_path):
    pytest.importorskip("onnxscript")
    with pytest.raises(Exception, match=WHAT_TO_DO):
        torch.onnx.export(fast, (images,), str(tmp_path / "a.onnx"), dynamo=True)


@pytest.mark.parametrize("strict", [False, True])
def test_onnx_by_torch_export_without_its_packages(strict, fast, images, monkeypatch):
    """What its exporter does with either kind of torch.export."""
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    with pytest.raises(Exception, match=WHAT_TO_DO):
        torch.export.export(fast, (images,), strict=strict)


@pytest.mark.situation("OpenVINO's and Core ML's converters", "refused: convert the original")
def test_openvino(fast, images):
    openvino = pytest.importorskip("openvino")
    with pytest.raises(Exception, match=WHAT_TO_DO):
        openvino.convert_model(fast, example_input=images)


@pytest.mark.parametrize("package", ["openvino", "coremltools"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_converter_that_traces(package, fast, images):
    converter = types.ModuleType(f"{package}.frontend")
    exec("def convert(model, x):\n    import torch\n    return torch.jit.trace(model, (x,))", vars(converter))
    with pytest.raises(ExportError, match=rf"{package} {WHAT_TO_DO}"):
        converter.convert(fast, images)
    assert package not in sys.modules or sys.modules[package] is not converter


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.situation("`torch.jit.trace`, `torch.export`, `torch.compile`", "works: one call of the engine")
def test_what_goes_on_working(fast, images):
    with plain_pytorch():
        expected = fast(images)
        assert relative_error(torch.jit.trace(fast, (images,))(images), expected) == 0
        for strict in (False, True):
            program = torch.export.export(fast, (images,), strict=strict)
            assert relative_error(program.module()(images), expected) == 0
            assert list(program.state_dict) == list(fast.state_dict())
        compiled = torch.compile(fast, backend="aot_eager", fullgraph=True)
        assert relative_error(compiled(images), expected) == 0


@pytest.mark.situation("`torch.fx.symbolic_trace`", "refused: trace the original, or use `make_fx`")
def test_symbolic_trace(fast):
    with pytest.raises(InputError, match="symbolic_trace cannot see into an optimised model"):
        torch.fx.symbolic_trace(fast)


@pytest.mark.thorough
@pytest.mark.situation("AOTInductor", "works: one call of the engine")
def test_aot_inductor(fast, images, tmp_path):
    if not hasattr(torch._inductor, "aoti_compile_and_package"):
        pytest.skip("this Torch cannot package what AOTInductor compiles")
    with torch.no_grad():
        program = torch.export.export(fast, (images,))
        path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "a.pt2"))
        assert torch.equal(torch._inductor.aoti_load_package(path)(images), fast(images))
