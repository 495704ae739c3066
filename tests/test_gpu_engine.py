"""Models on the GPU engine, run by Triton's interpreter on the CPU."""

import copy
import logging
import pickle
import threading

import pytest
import torch
from checks import NETWORK_BOUND, assert_close, exact_network, one_torch_thread, seeded
from models import SMALL, SMALL_MOBILE, TINY
from torch import nn

pytest.importorskip("triton")

import effv2_kernels
from effv2_kernels import backends, explain, load, optimize, save, sources
from effv2_kernels.errors import InputError, ResolutionError, UnavailableError
from effv2_kernels.gpu import engine as engines
from effv2_kernels.gpu import planner
from effv2_kernels.gpu.engine import Engine
from effv2_kernels.gpu.plan import Plan
from effv2_kernels.triton import kernels

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
BOUNDS = {"fp32": NETWORK_BOUND, "fp16": 2e-2, "bf16": 2e-2}


@pytest.fixture(autouse=True)
def quiet_pytorch():
    with one_torch_thread():
        yield


def tiny(dtype="fp16", **options):
    return optimize(TINY.build(seeded(60)), dtype=dtype, backend="triton", **options)


def images(batch=1, dtype=torch.float16):
    return TINY.images(seeded(61), batch).to(dtype)


class CountingPlan(Plan):
    made = 0

    def __init__(self, *args):
        type(self).made += 1
        super().__init__(*args)


@pytest.fixture(scope="module")
def fast():
    return tiny()


@pytest.fixture(scope="module")
def logits(fast):
    with one_torch_thread():
        return fast(images())


@pytest.mark.parametrize("dtype", DTYPES)
def test_logits(dtype):
    fast, x = tiny(dtype), images(2, DTYPES[dtype])
    y = fast(x)
    (expected,) = exact_network(fast.network, x)
    assert (y.shape, y.dtype) == ((2, 10), DTYPES[dtype])
    assert_close(y.float(), expected, BOUNDS[dtype])


def test_feature_maps():
    """Of a backbone that returns four, two of them with a BatchNorm of their own."""
    norms = (True, False, True, False)
    model = SMALL[0].build(seeded(62), num_classes=0, features_only=True, feature_norms=norms)
    fast = optimize(model, backend="triton", dtype="fp32")
    x = SMALL[0].images(seeded(63))
    expected = exact_network(fast.network, x)
    found = fast(x)
    assert len(found) == len(expected) == 4
    for y, y_expected in zip(found, expected, strict=True):
        assert y.is_contiguous(memory_format=torch.channels_last)
        assert_close(y, y_expected, NETWORK_BOUND)


def test_the_precision_is_that_of_the_model():
    model = TINY.build(seeded(60)).half()
    fast = optimize(model, backend="triton", dtype="fp16")
    assert fast.choice == backends.Choice("triton", "fp16", "interpreter", fast.choice.why)
    assert "TRITON_INTERPRET=1" in fast.choice.why
    (expected,) = exact_network(sources.read(model), images())
    assert_close(fast(images()).float(), expected, BOUNDS["fp16"])


LAYOUTS = {
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "every second column": lambda x: torch.stack([x, x + 1], 4).flatten(3)[..., ::2],
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "part of a larger batch": lambda x: torch.cat([x, x])[1:2],
    "expanded": lambda x: x.expand(1, *x.shape[1:]),
}


_NAMES = list(LAYOUTS)


@pytest.mark.parametrize(
    "layout", [*_NAMES[:2], *(pytest.param(n, marks=pytest.mark.thorough) for n in _NAMES[2:])]
)
def test_layouts(fast, logits, layout):
    x = LAYOUTS[layout](images())
    assert torch.equal(x, images())
    assert torch.equal(fast(x), logits)


@pytest.mark.parametrize("spec", [TINY, SMALL_MOBILE[0]], ids=lambda spec: spec.name)
def test_images_of_either_layout_are_not_copied(spec):
    engine = Engine(sources.read(spec.build(seeded(60))), kernels, torch.float16, torch.device("cpu"))
    x = spec.images(seeded(61), 2).half()
    for image in (x, LAYOUTS["channels_last"](x)):
        assert engine._accepted(image).data_ptr() == image.data_ptr()
        assert engine._accepted(image).stride() == image.stride()


def test_a_lazily_negated_input_is_negated(fast):
    x = images().float()
    lazy = torch.complex(torch.zeros_like(x), x).conj().imag
    model = tiny("fp32")
    assert lazy.is_neg()
    assert torch.equal(model(lazy), model(-x))


def test_a_part_of_a_model():
    """Blocks in a module of somebody else: the input of the first one may be NCHW."""
    part = nn.Sequential(TINY.build(seeded(64)).stages[0].blocks[0], nn.ReLU()).eval()
    fast = optimize(part, backend="triton", dtype="fp32", strict=False)
    x = torch.randn(2, 8, 5, 6, generator=seeded(65))
    expected = part.double()(x.double()).detach()
    for layout in (x, x.contiguous(memory_format=torch.channels_last)):
        assert_close(fast(layout), expected, NETWORK_BOUND)


REFUSED = {
    "float32": (lambda: images().float(), r"expected torch.float16, but got torch.float32.*x.half\(\)"),
    "bfloat16": (lambda: images().bfloat16(), r"expected torch.float16, but got torch.bfloat16"),
    "meta": (lambda: images().to("meta"), r"on the cpu, but got one on meta"),
    "channels": (lambda: images()[:, :1], "expected 3 channels"),
    "empty": (lambda: images()[:0], "batch is empty"),
    "rank": (lambda: images()[0], "rank 4"),
    "no tensor": (lambda: [1, 2], "got list"),
}


def test_refused(fast, logits):
    for make, message in REFUSED.values():
        with pytest.raises(InputError, match=message):
            fast(make())
    assert torch.equal(fast(images()), logits)


def test_a_tensor_on_another_device_is_refused_both_ways():
    """The engine of a GPU is asked without one: the check comes before anything reaches the device."""
    network = sources.read(TINY.build(seeded(60)))
    engine = Engine(network, kernels, torch.float16, torch.device("cpu"))
    engine._device = torch.device("cuda:1")
    message = (
        r"expected a tensor on the cuda:1, but got one on cpu. Move it with x.to\('cuda:1'\), or the model"
    )
    with pytest.raises(InputError, match=message):
        engine.run(images())


def test_a_size_that_the_bias_does_not_fit(fast):
    with pytest.raises(ResolutionError, match=r"fit inputs of 17-32 rows by 17-32 columns.*is 33x32"):
        fast(torch.zeros(1, 3, 33, 32, dtype=torch.float16))


def test_autocast_converts_images(fast, logits):
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fast(images().float()), logits)


def test_autocast_leaves_the_cpu_engine_alone():
    fast, x = optimize(TINY.build(seeded(60))), images().float()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fast(x), fast(x.float()))
        assert torch.equal(fast(x.bfloat16()), fast(x.bfloat16().float()))
        with pytest.raises(InputError, match="uint8"):
            fast(x.byte())


def test_inference_mode(logits):
    with torch.inference_mode():
        other = tiny()
        assert torch.equal(other(images()), logits)
    assert torch.equal(other(images()), logits)


def test_outputs_do_not_share_memory(fast, logits):
    kept = logits.clone()
    assert not torch.equal(fast(images() + 1), kept)
    assert torch.equal(logits, kept)


def test_threads(monkeypatch):
    """Several Python threads on one engine, each with images of its own; the interpreter knows only one."""
    monkeypatch.setattr(planner, "Plan", CountingPlan)
    monkeypatch.setattr(CountingPlan, "made", 0)
    monkeypatch.setattr(CountingPlan, "run", lambda plan, x: [x.sum((2, 3), keepdim=True).float()])
    engine = Engine(sources.read(TINY.build(seeded(60))), kernels, torch.float16, torch.device("cpu"))
    start = threading.Barrier(8)
    found = {}

    def work(i):
        start.wait()
        for _ in range(5):
            found[i] = engine.run(images(1 + i % 4) * i)[0]

    workers = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for i in range(8):
        assert torch.equal(found[i], (images(1 + i % 4) * i).sum((2, 3)).float())
    assert CountingPlan.made == 4


def test_weights_that_change(fast, logits):
    other = copy.deepcopy(fast)
    _ = other.engine
    with torch.no_grad():
        other.blocks[-1].bias += 1
    assert torch.allclose(other(images()), logits + 1, atol=0.02)
    assert torch.equal(fast(images()), logits)


def test_copies_and_files(fast, logits, tmp_path):
    save(pickle.loads(pickle.dumps(copy.deepcopy(fast))), tmp_path / "tiny.effv2")
    loaded = load(tmp_path / "tiny.effv2", dtype="fp16", backend="triton")
    assert torch.equal(loaded(images()), logits)
    on_cpu = load(tmp_path / "tiny.effv2")
    assert_close(on_cpu(images().float()), logits.double(), 2e-2)


def test_gradients_are_those_of_the_reference():
    model = TINY.build(seeded(60))
    fast, x = optimize(model, backend="triton", dtype="fp32"), images().float().requires_grad_()
    fast(x).square().sum().backward()
    found, x.grad = x.grad, None
    exact_x = x.detach().double().requires_grad_()
    model.double()(exact_x).square().sum().backward()
    assert_close(found, exact_x.grad, 2e-5)


def test_compiles_without_a_graph_break(fast, logits):
    compiled = torch.compile(fast, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.equal(compiled(images()), logits)
        with pytest.raises(Exception, match="float16"):
            compiled(images().float())


def test_plans_are_kept_and_their_number_is_bounded(monkeypatch):
    monkeypatch.setattr(planner, "Plan", CountingPlan)
    monkeypatch.setattr(engines, "_MAX_PLANS", 2)
    monkeypatch.setattr(CountingPlan, "made", 0)
    monkeypatch.setattr(CountingPlan, "run", lambda plan, x: [torch.zeros(plan.image.images, 10, 1, 1)])
    engine = Engine(sources.read(TINY.build(seeded(60))), kernels, torch.float16, torch.device("cpu"))
    for batch in (1, 2, 1, 2):
        assert engine.run(images(batch))[0].shape == (batch, 10)
    assert CountingPlan.made == 2
    engine.run(images(3))  # batch 1 goes, which was used longest ago
    engine.run(images(2))
    assert CountingPlan.made == 3
    engine.run(images(1))
    assert CountingPlan.made == 4
    assert len(engine._planned) == 2
    assert engine.last_size == (32, 32)


def test_tf32_by_the_switch_of_pytorch():
    engine = Engine(sources.read(TINY.build(seeded(60))), kernels, torch.float32, torch.device("cpu"))
    half = Engine(sources.read(TINY.build(seeded(60))), kernels, torch.float16, torch.device("cpu"))
    assert engine._precision() == "ieee"
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        assert engine._precision() == "tf32"
        assert half._precision() == "ieee"  # it has no float32 products
        launches = [launch for block in engine.block_launches(32, 32) for launch, *_ in block]
        products = [launch for launch in launches if "PRECISION" in launch.constants]
        assert {launch.constants["PRECISION"] for launch in products if launch.name == "product"} == {"tf32"}
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
    assert engine._precision() == "ieee"


class FakeGraph:
    """Takes the place of a captured graph where there is no GPU."""

    made = 0

    def __init__(self, plan, x):
        type(self).made += 1
        self.plan = plan

    def replay(self, x):
        return self.plan.run(x)


@pytest.fixture
def capturing_engine(monkeypatch):
    monkeypatch.setattr(engines, "Graph", FakeGraph)
    monkeypatch.setattr(FakeGraph, "made", 0)
    monkeypatch.setattr(Plan, "run", lambda plan, x: [torch.zeros(plan.image.images, 10, 1, 1)])
    engine = Engine(sources.read(TINY.build(seeded(60))), kernels, torch.float16, torch.device("cpu"))
    engine._cuda_graph = True
    return engine


def test_a_shape_that_comes_again_is_captured_once(capturing_engine):
    for calls, made in ((1, 0), (2, 1), (3, 1)):
        capturing_engine.run(images())
        assert FakeGraph.made == made, f"after {calls} calls"
    capturing_engine.run(images(2))
    assert FakeGraph.made == 1


def test_no_graph_inside_of_somebody_elses(capturing_engine, monkeypatch):
    capturing_engine.run(images())
    monkeypatch.setattr(Engine, "_within_capture", lambda engine: True)
    for _ in range(3):
        assert capturing_engine.run(images())[0].shape == (1, 10)
    assert FakeGraph.made == 0


def test_nothing_is_made_inside_of_somebody_elses_graph(capturing_engine, monkeypatch):
    """It would only be recorded, and be missing for all other calls."""
    monkeypatch.setattr(Engine, "_within_capture", lambda engine: True)
    with pytest.raises(UnavailableError, match=r"planned for images of \(1, 3, 32, 32\) while a CUDA graph"):
        capturing_engine.run(images())
    with pytest.raises(UnavailableError, match="packed while a CUDA graph is captured"):
        Engine(sources.read(TINY.build(seeded(60))), kernels, torch.float16, torch.device("cpu"))
    monkeypatch.undo()
    assert capturing_engine._planned == {}


def test_a_capture_that_fails_is_logged_and_tried_again(capturing_engine, monkeypatch, caplog):
    """Another thread may have ended it; but not for ever."""

    def fail(graph, plan, x):
        FakeGraph.made += 1
        raise torch.OutOfMemoryError("no memory for the graph")

    monkeypatch.setattr(FakeGraph, "__init__", fail)
    with caplog.at_level(logging.WARNING):
        for _ in range(6):
            assert capturing_engine.run(images())[0].shape == (1, 10)
    assert FakeGraph.made == len(caplog.records) == 3
    for record in caplog.records:
        assert "run without a CUDA graph, kernel by kernel: no memory for the graph" in record.getMessage()


def test_graphs_give_way_where_memory_is_short(capturing_engine, monkeypatch):
    """Those of all shapes, and what ran out of memory is not captured again."""
    for _ in range(2):
        capturing_engine.run(images(2))
    (other,) = capturing_engine._planned.values()
    capturing_engine.run(images())

    def replay(graph, x):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(FakeGraph, "replay", replay)
    assert other.graph is not None
    for _ in range(3):
        assert capturing_engine.run(images())[0].shape == (1, 10)
    assert other.graph is None
    assert FakeGraph.made == 2


def test_graphs_stay_where_memory_is_short_within_a_capture(capturing_engine, monkeypatch):
    for _ in range(2):
        capturing_engine.run(images())
    (planned,) = capturing_engine._planned.values()

    def run(plan, x):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Plan, "run", run)
    monkeypatch.setattr(Engine, "_within_capture", lambda engine: True)
    with pytest.raises(torch.OutOfMemoryError):
        capturing_engine.run(images())
    assert planned.graph is not None


def test_out_of_memory_without_graphs(capturing_engine, monkeypatch):
    def run(plan, x):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as short:
        short.setattr(Plan, "run", run)
        with pytest.raises(torch.OutOfMemoryError):
            capturing_engine.run(images())
    assert capturing_engine.run(images())[0].shape == (1, 10)


def test_without_graphs_by_argument(monkeypatch):
    given = {}
    monkeypatch.setattr(Engine, "__init__", lambda engine, *_, **options: given.update(options))
    _ = tiny(cuda_graph=False)
    assert given == {"cuda_graph": False}


def test_explained(fast):
    explanation = explain(fast)
    assert {(row.backend, row.isa, row.dtype) for row in explanation.rows} == {
        ("triton", "interpreter", "fp16")
    }
    on_cpu = explain(optimize(TINY.build(seeded(60))))
    assert [row.output for row in explanation.rows] == [row.output for row in on_cpu.rows]
    assert [row.gflop for row in explanation.rows] == pytest.approx([row.gflop for row in on_cpu.rows])
    assert explanation.why[0].startswith("OptimizedModel: backend triton in fp16; GPU interpreter")


@pytest.mark.parametrize("spec", [SMALL[0], SMALL_MOBILE[0]], ids=lambda spec: spec.name)
@pytest.mark.parametrize("size", [(64, 64), (49, 61)])
def test_multiply_adds_are_counted_as_on_the_cpu(size, spec):
    network = sources.read(spec.build(seeded(66)))
    on_cpu = effv2_kernels.cpu.Engine(network)
    engine = Engine(network, kernels, torch.float16, torch.device("cpu"))
    assert engine.block_macs(*size) == on_cpu.block_macs(*size)
    assert engine.block_shapes(*size)[:-1] == on_cpu.block_shapes(*size)[:-1]  # logits have no rows
