"""``torch.ops.effv2.*``: schema, fake kernels, gradients, packing, and graphs of whole models."""

import copy
import io
from dataclasses import fields

import pytest
import torch
from checks import BLOCK_BOUND, NETWORK_BOUND, assert_close, block_case, exact, exact_network, seeded
from models import SMALL, Spec

import effv2_kernels.ops  # noqa: F401  (registers the ops)
from effv2_kernels import blocks, cpu, optimize, shapes, structure
from effv2_kernels.errors import InputError, ResolutionError
from effv2_kernels.ops import engines
from effv2_kernels.reference import Architecture, run_block

# The sizes of heads matter to the engine (see test_attention), not to the ops; small ones are quick.
TINY = Spec("tiny", Architecture((8, 8, 16, 16), (1, 0, 1, 0), 2, (1, 0)), img_size=32)
HEADS = {"heads": 4, "key_dim": 8, "value_dim": 16}

SHAPES = {
    "stem": shapes.stem(16, 9, 14),
    "ffn": shapes.ffn(16, 40, 5, 7),
    "attention": shapes.attention(16, 5, 4, **HEADS),
    "strided attention": shapes.attention(16, 5, 6, stride=2, **HEADS),
    "attention with a resized bias": shapes.attention(16, 5, 6, table=(3, 4), **HEADS),
    "conv_downsample": shapes.conv_downsample(16, 24, 5, 6),
    "attention_downsample": shapes.attention_downsample(16, 24, 5, 6, **HEADS),
    "head": shapes.head(16, 9, 3, 4),
}


@pytest.fixture(autouse=True)
def one_thread():
    """PyTorch's own threads only wait for each other at these sizes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def values(block):
    """The op's arguments behind x."""
    return [getattr(block, f.name) for f in fields(block)]


def op_of(block):
    return getattr(torch.ops.effv2, block.kind).default


@pytest.fixture(params=SHAPES)
def shape(request):
    return SHAPES[request.param]


def gentle(shape):
    """(op, arguments, block): weights so small that gradients do not depend on the order of sums."""
    block, x, _ = block_case(shape)
    block = type(block)(**{k: 0.3 * t for k, t in block.tensors().items()}, **own_options(block))
    return op_of(block), [x, *values(block)], block


def own_options(block):
    return {k: bool(v) if k == "resize_bias" else v for k, v in block.options().items()}


def require_grad(arguments, which):
    return [
        a.clone().requires_grad_(which(i)) if isinstance(a, torch.Tensor) else a
        for i, a in enumerate(arguments)
    ]


@pytest.mark.parametrize("differentiable", [False, True])
def test_opcheck(shape, differentiable):
    op, arguments, _ = gentle(shape)
    torch.library.opcheck(op, tuple(require_grad(arguments, lambda i: differentiable)))


@pytest.mark.parametrize(("features", "differentiable"), [(True, False), (False, True)])
def test_opcheck_of_a_network(features, differentiable):
    g = seeded(30)
    fast = optimize(TINY.build(g, features_only=features))
    images = TINY.images(g, 2).requires_grad_(differentiable)
    arguments = (images, fast._weights(), fast.description()["structure"], "", 0)
    checks = ["test_schema", "test_autograd_registration", "test_faketensor"]
    # What is left with gradients takes long; test_compiles_with_gradients covers it.
    checks += [] if differentiable else ["test_aot_dispatch_dynamic"]
    torch.library.opcheck(torch.ops.effv2.network.default, arguments, test_utils=checks)


def test_matches_the_reference(shape):
    block, x, expected = block_case(shape, 3)
    y = op_of(block)(x, *values(block))
    assert_close(y, expected, BLOCK_BOUND, str(shape))
    assert y.ndim != 4 or y.is_contiguous(memory_format=torch.channels_last)
    window = torch.full((3, x.shape[1] + 1, x.shape[2] + 2, x.shape[3] + 3), torch.nan)
    window[:, 1:, 2:, 3:] = x
    assert_close(
        op_of(block)(window[:, 1:, 2:, 3:], *values(block)), expected, BLOCK_BOUND, f"{shape}, window"
    )


def test_schemas_name_every_field_in_order(shape):
    block, _, _ = block_case(shape)
    arguments = op_of(block)._schema.arguments
    assert [a.name for a in arguments] == ["x", *(f.name for f in fields(block))]
    optional = {f.name for f in fields(block) if f.default is not f.default_factory}
    assert {a.name for a in arguments if a.has_default_value()} == optional


def test_every_block_has_an_op():
    for kind in structure.BLOCK_TYPES:
        assert hasattr(torch.ops.effv2, kind)


def test_gradients_are_those_of_the_reference(shape):
    op, arguments, block = gentle(shape)
    arguments = require_grad(arguments, lambda i: True)
    tensors = [a for a in arguments if isinstance(a, torch.Tensor)]
    y = op(*arguments)
    upstream = torch.randn(y.shape, generator=seeded(31))
    found = torch.autograd.grad(y, tensors, upstream, allow_unused=True)

    exact_tensors = [t.detach().double().requires_grad_() for t in tensors]
    x, *weights = exact_tensors
    exact_block = type(block)(**dict(zip(block.tensors(), weights, strict=True)), **own_options(block))
    expected = torch.autograd.grad(run_block(exact_block, x), exact_tensors, upstream.double())
    for name, a, e in zip(["x", *block.tensors()], found, expected, strict=True):
        # Gradients are sums over all positions in plain fp32.
        assert_close(a, e, 2e-5, f"gradient of {name} of {shape}")


def test_gradients_pass_through_a_whole_model():
    g = seeded(32)
    model = SMALL[0].build(g)
    fast = optimize(model)
    images = SMALL[0].images(g, 2).requires_grad_()
    fast(images).square().sum().backward()
    found, images.grad = images.grad, None
    model.double()
    twin = images.detach().double().requires_grad_()
    model(twin).square().sum().backward()
    assert_close(found, twin.grad, 2e-5)


def test_no_graph_is_kept_where_none_is_asked_for():
    g = seeded(33)
    fast = optimize(SMALL[0].build(g))
    images = SMALL[0].images(g).requires_grad_()
    with torch.no_grad():
        assert not fast(images).requires_grad
    with torch.inference_mode():
        assert not fast(images).requires_grad
    assert not fast(images.detach()).requires_grad
    assert fast(images).requires_grad


class Counter:
    """Counts the engines that are packed."""

    def __init__(self, monkeypatch):
        self.count = 0
        original = cpu.Engine.__init__

        def counting(engine, *args, **kwargs):
            self.count += 1
            original(engine, *args, **kwargs)

        monkeypatch.setattr(cpu.Engine, "__init__", counting)


def test_weights_are_packed_once_and_again_when_they_change(monkeypatch):
    block, x, _ = block_case(shapes.ffn(16, 48, 4, 4))
    arguments = [v.clone() for v in values(block)]
    counter = Counter(monkeypatch)
    op = torch.ops.effv2.ffn
    first = op(x, *arguments)
    for _ in range(3):
        assert torch.equal(op(x, *arguments), first)
    assert counter.count == 1
    arguments[-1].add_(1)
    assert torch.allclose(op(x, *arguments), first + 1, atol=1e-5)
    assert counter.count == 2
    arguments[0] = arguments[0].clone()
    op(x, *arguments)
    assert counter.count == 3


def test_packed_weights_go_with_the_tensors():
    block, x, _ = block_case(shapes.ffn(16, 56, 4, 4))
    before = len(engines._entries)
    arguments = [v.clone() for v in values(block)]
    torch.ops.effv2.ffn(x, *arguments)
    assert len(engines._entries) == before + 1
    del arguments
    assert len(engines._entries) == before


def test_weights_without_version_counter_are_never_stale():
    block, x, _ = block_case(shapes.head(16, 5, 2, 2))
    with torch.inference_mode():
        weight, bias = block.weight.clone(), block.bias.clone()
        first = torch.ops.effv2.head(x, weight, bias)
        bias.add_(1)
        assert torch.allclose(torch.ops.effv2.head(x, weight, bias), first + 1, atol=1e-5)


def test_the_isa_can_be_forced(monkeypatch):
    """The op asks the environment at each call, and keeps one engine for each answer."""
    block, x, expected = block_case(SHAPES["ffn"])
    used = []
    original = cpu.Engine.run

    def recording(engine, *args):
        used.append(engine.isa)
        return original(engine, *args)

    monkeypatch.setattr(cpu.Engine, "run", recording)
    for isa in (*cpu.native().available_isas(), *cpu.native().available_isas()):
        monkeypatch.setenv("EFFV2_FORCE_ISA", isa)
        assert_close(torch.ops.effv2.ffn(x, *values(block)), expected, BLOCK_BOUND, isa)
    assert used == cpu.native().available_isas() * 2


TENSORS = [
    pytest.param(shape, index, id=f"{name}-{field.name}")
    for name, shape in SHAPES.items()
    for index, field in enumerate(fields(structure.BLOCK_TYPES[shape.kind]))
    if field.name in structure.tensor_shapes(shape.kind, shape.sizes, shape.options)
]


@pytest.mark.parametrize(("shape", "index"), TENSORS)
def test_weights_of_a_wrong_shape_are_refused(shape, index):
    """Too long, too short, another rank, empty: none of it may reach the engine."""
    block, x, _ = block_case(shape)
    name = fields(block)[index].name
    for spoil in (
        lambda t: torch.cat([t, t[:1]]),
        lambda t: t[:-1],
        lambda t: t[None],
        lambda t: t.flatten()[0],
        lambda t: t[:0],
    ):
        arguments = values(block)
        arguments[index] = spoil(arguments[index])
        if name == "bias" and block.kind.startswith("attention") and arguments[index].ndim == 3:
            arguments[index] = arguments[index][:, :0]  # its rows and columns are free
        with pytest.raises(InputError, match=rf"block {block.kind}: .* has shape .*expected"):
            op_of(block)(x, *arguments)


def test_weights_of_a_wrong_dtype_are_refused():
    block, x, _ = block_case(SHAPES["head"])
    with pytest.raises(InputError, match=r"block head: weight is torch.float64; expected torch.float32"):
        torch.ops.effv2.head(x, block.weight.double(), block.bias)


def test_options_that_do_not_fit_are_refused():
    block, x, _ = block_case(SHAPES["attention"])
    for name, value in (("heads", 7), ("heads", 0), ("key_dim", -32), ("value_dim", 2**40), ("stride", 3)):
        arguments = dict(zip([f.name for f in fields(block)], values(block), strict=True))
        with pytest.raises(InputError, match="block attention: "):
            torch.ops.effv2.attention(x, **{**arguments, name: value})
    arguments = dict(zip([f.name for f in fields(block)], values(block), strict=True))
    with pytest.raises(InputError, match="dw_weight is missing"):
        torch.ops.effv2.attention(x, **{**arguments, "stride": 2})


def test_inputs_that_do_not_fit_are_refused(shape):
    block, x, _ = block_case(shape)
    for bad, message in (
        (x[0], "rank 4"),
        (x[:, :-1], "channels"),
        (x.double(), "float32"),
        (x[:0], "batch is empty"),
        (x[:, :, :0], "no pixels"),
    ):
        with pytest.raises(InputError, match=message):
            op_of(block)(bad, *values(block))


def test_a_bias_that_does_not_fit_is_refused():
    block, _, _ = block_case(SHAPES["attention"])
    with pytest.raises(ResolutionError, match="5-5 rows by 4-4 columns"):
        torch.ops.effv2.attention(torch.zeros(1, 16, 5, 5), *values(block))


@pytest.fixture
def fast_and_images():
    g = seeded(34)
    return optimize(TINY.build(g)), TINY.images(g, 3)


def test_compiles_without_a_graph_break(fast_and_images, monkeypatch):
    fast, images = fast_and_images
    counter = Counter(monkeypatch)
    compiled = torch.compile(fast, fullgraph=True)
    with torch.no_grad():
        for batch in (3, 3, 1, 2):
            assert torch.equal(compiled(images[:batch]), fast(images[:batch]))
    assert counter.count == 0, "the graph packed the weights again"


def test_compiles_inside_a_larger_function(fast_and_images):
    fast, images = fast_and_images

    def classify(x):
        return torch.relu(fast(x * 2 - 1)).softmax(1)

    compiled = torch.compile(classify, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.allclose(compiled(images), classify(images), atol=1e-6)
        assert torch.allclose(compiled(images[:2]), classify(images[:2]), atol=1e-6)


def test_compiled_code_sees_changed_weights(fast_and_images):
    fast, images = fast_and_images
    compiled = torch.compile(fast, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        before = compiled(images)
        fast.blocks[-1].bias += 1
        assert torch.allclose(compiled(images), before + 1, atol=1e-4)
        assert torch.equal(compiled(images), fast(images))


def test_compiles_with_gradients(fast_and_images):
    fast, images = fast_and_images
    compiled = torch.compile(fast, fullgraph=True, backend="aot_eager")
    grads = []
    for f in (fast, compiled):
        x = images.clone().requires_grad_()
        f(x).square().sum().backward()
        grads.append(x.grad)
    assert_close(grads[1], grads[0].double(), 1e-6)


@pytest.mark.filterwarnings("ignore:No complete tensor found in the group")  # the weights are views of one
@pytest.mark.parametrize("features", [False, True])
def test_exports_runs_and_loads_again(features):
    g = seeded(35)
    model = SMALL[0].build(g, features_only=features)
    fast, images = optimize(model), SMALL[0].images(g, 3)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(fast, (images,), dynamic_shapes=({0: batch},))
    assert set(program.state_dict) == set(fast.state_dict())
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for n in (3, 1, 2):
        expected = fast(images[:n])
        for module in (program.module(), loaded):
            found = module(images[:n])
            for y, e in zip(
                [found] if not features else found, [expected] if not features else expected, strict=True
            ):
                assert torch.equal(y, e)


def test_exports_with_dynamic_height_and_width():
    """Where the bias is resized, any size works, and the graph knows how outputs follow from it."""
    g = seeded(36)
    model = SMALL[0].build(g, features_only=True, resize_bias=True)
    fast, images = optimize(model), SMALL[0].images(g, 2)
    # From 33 on: below, the last map has one row or column, which torch.export takes for a special case.
    height, width = torch.export.Dim("height", min=33, max=512), torch.export.Dim("width", min=33, max=512)
    module = torch.export.export(fast, (images,), dynamic_shapes=({2: height, 3: width},)).module()
    for size in ((64, 64), (97, 50)):
        x = torch.randn(2, 3, *size, generator=g)
        for y, e in zip(module(x), fast(x), strict=True):
            assert torch.equal(y, e)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_traces(fast_and_images):
    fast, images = fast_and_images
    traced = torch.jit.trace(fast, (images,), check_trace=False)
    other = torch.randn(images.shape, generator=seeded(37))
    assert torch.equal(traced(other), fast(other))


def test_fake_tensors_give_shapes(fast_and_images):
    fast, images = fast_and_images
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        y = fast(mode.from_tensor(images))
    assert y.shape == (3, 10)
    assert y.dtype == torch.float32


def test_a_copy_shares_nothing_with_the_graph_of_the_original(fast_and_images):
    fast, images = fast_and_images
    compiled = torch.compile(fast, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        before = compiled(images)
        other = copy.deepcopy(fast)
        other.blocks[-1].bias += 1
        assert torch.equal(compiled(images), before)


def test_network_op_matches_float64(fast_and_images):
    fast, images = fast_and_images
    (y,) = torch.ops.effv2.network(images, fast._weights(), fast.description()["structure"], "scalar", 1)
    (expected,) = exact_network(fast.network, images)
    assert_close(y, expected, NETWORK_BOUND * 4)  # weights of any size, see test_network


def test_block_ops_compose_to_the_network(fast_and_images):
    """Someone who builds a network of the single ops gets the optimised model's output."""
    fast, images = fast_and_images
    y = images
    for block in fast.network.blocks:
        exact_output = exact(block, y)
        y = op_of(block)(y, *values(block))
        assert_close(y, exact_output, 2 * BLOCK_BOUND, block.kind)
    assert torch.equal(y, fast(images))


def test_blocks_are_frozen(shape):
    block, _, _ = block_case(shape)
    assert isinstance(block, blocks.Block)
    with pytest.raises(AttributeError):
        block.kind = "other"
