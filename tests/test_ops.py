"""``torch.ops.effv2.*``: schema, fake kernels, gradients, packing, bad arguments."""

from dataclasses import MISSING

import pytest
import torch
from block_shapes import OPTIONS, SHAPES
from checks import (
    BLOCK_BOUND,
    NETWORK_BOUND,
    PackingCounter,
    assert_close,
    block_case,
    exact,
    exact_network,
    one_torch_thread,
    rebuilt,
    seeded,
)
from models import LEAST, name_of

import effv2_kernels.ops  # noqa: F401  (registers the ops)
from effv2_kernels import blocks, cpu, declaration, optimize, shapes
from effv2_kernels.errors import InputError, ResolutionError
from effv2_kernels.ops import engines
from effv2_kernels.reference import run_block

# backend, dtype, isa, threads and cuda_graph of the network op
HOW = ("auto", "fp32", "scalar", 1, True)


@pytest.fixture(autouse=True)
def quiet_pytorch():
    with one_torch_thread():
        yield


def values(block):
    """The op's arguments behind x."""
    return list(block.values().values())


def op_of(block):
    return getattr(torch.ops.effv2, block.kind).default


# Options and absent parts besides. No ReLU6: its derivative has steps, which rounding may cross.
TRIED = {
    **SHAPES,
    **{
        name: OPTIONS[name]
        for name in ("ffn without expansion", "conv 1x1", "attention without talking heads")
    },
    "strided ffn": shapes.ffn(16, 40, 5, 8, out=24, stride=2, residual=0, activation="silu"),
}


@pytest.fixture(params=TRIED)
def shape(request):
    return TRIED[request.param]


def gentle(shape):
    """(op, arguments, block): weights so small that gradients do not depend on the order of sums."""
    block, x, _ = block_case(shape)
    block = rebuilt(block, **{k: 0.3 * t for k, t in block.tensors().items()})
    return op_of(block), [x, *values(block)], block


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
@pytest.mark.parametrize("spec", LEAST, ids=name_of)
def test_opcheck_of_a_network(spec, features, differentiable):
    g = seeded(30)
    fast = optimize(spec.build(g, features_only=features))
    images = spec.images(g, 2).requires_grad_(differentiable)
    arguments = (images, fast._weights(), fast.description()["structure"], *HOW)
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
    assert [a.name for a in arguments] == ["x", *block.values()]
    optional = {a.name for a in declaration.arguments(type(block)) if a.default is not MISSING}
    assert {a.name for a in arguments if a.has_default_value()} == optional


def test_every_block_has_an_op():
    for kind in blocks.BLOCK_TYPES:
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
    exact_block = rebuilt(block, **dict(zip(block.tensors(), weights, strict=True)))
    expected = torch.autograd.grad(run_block(exact_block, x), exact_tensors, upstream.double())
    for name, a, e in zip(["x", *block.tensors()], found, expected, strict=True):
        # Gradients are sums over all positions in plain fp32.
        assert_close(a, e, 2e-5, f"gradient of {name} of {shape}")


def test_weights_are_packed_once_and_again_when_they_change(monkeypatch):
    block, x, _ = block_case(shapes.ffn(16, 48, 4, 4))
    arguments = [t.clone() for t in block.tensors().values()]
    counter = PackingCounter(monkeypatch)
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
    arguments = [t.clone() for t in block.tensors().values()]
    torch.ops.effv2.ffn(x, *arguments)
    assert len(engines._entries) == before + 1
    del arguments
    assert len(engines._entries) == before


def test_weights_without_version_counter_are_never_stale():
    block, x, _ = block_case(shapes.head(16, 5, 2, 2))
    with torch.inference_mode():
        weight, bias = block.linear.weight.clone(), block.linear.bias.clone()
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
    pytest.param(shape, index, id=f"{name}-{a.name}")
    for name, shape in SHAPES.items()
    for index, a in enumerate(declaration.arguments(blocks.BLOCK_TYPES[shape.kind]))
    if a.name in declaration.tensor_shapes(blocks.BLOCK_TYPES[shape.kind], shape.sizes, shape.options)
]


@pytest.mark.parametrize(("shape", "index"), TENSORS)
def test_weights_of_a_wrong_shape_are_refused(shape, index):
    """Too long, too short, another rank, empty: none of it may reach the engine."""
    block, x, _ = block_case(shape)
    name = list(block.values())[index]
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
        torch.ops.effv2.head(x, block.linear.weight.double(), block.linear.bias)


def test_options_that_do_not_fit_are_refused():
    block, x, _ = block_case(SHAPES["attention"])
    for name, value in (("heads", 7), ("heads", 0), ("key_dim", -32), ("value_dim", 2**40), ("stride", 3)):
        arguments = block.values()
        with pytest.raises(InputError, match="block attention: "):
            torch.ops.effv2.attention(x, **{**arguments, name: value})
    arguments = block.values()
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


@pytest.fixture(params=LEAST, ids=name_of)
def fast_and_images(request):
    g = seeded(34)
    return optimize(request.param.build(g)), request.param.images(g, 3)


def test_network_op_matches_float64(fast_and_images):
    fast, images = fast_and_images
    (y,) = torch.ops.effv2.network(images, fast._weights(), fast.description()["structure"], *HOW)
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
