"""People differentiate, batch and trace a network by PyTorch's function transforms, and swap its weights."""

import timeit

import pytest
import torch
from block_shapes import of_kind
from checks import BLOCK_BOUND, block_case, plain_pytorch, rebuilt, seeded
from models import TINY, Spec, relative_error
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

import effv2_kernels.ops  # noqa: F401  (registers the ops)
from effv2_kernels import blocks, cpu, optimize, shapes
from effv2_kernels.errors import InputError
from effv2_kernels.families.efficientformer_v2 import Architecture
from effv2_kernels.inputs import check_memory
from effv2_kernels.reference import run_block

# fp32 against fp32: sums of weights of any size on both sides
CLOSE = 2e-5


@pytest.fixture(scope="module")
def model():
    return TINY.build(seeded(601))


@pytest.fixture(scope="module")
def fast(model):
    return optimize(model)


@pytest.fixture(scope="module")
def images():
    return TINY.images(seeded(602), 2)


def _dual(f, x):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(f(forward_ad.make_dual(x, torch.ones_like(x)))).tangent


def _penalty(f, x):
    """The gradient of the norm of a gradient."""
    x = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(f(x).square().sum(), x, create_graph=True)
    return torch.autograd.grad(g.square().sum(), x)[0]


def _sum(f):
    return lambda x: f(x).sum()


TRANSFORMS = {
    "torch.func.vmap": lambda f, x: torch.func.vmap(f)(x[:, None]),
    "torch.func.grad": lambda f, x: torch.func.grad(_sum(f))(x),
    "torch.func.jvp": lambda f, x: torch.func.jvp(f, (x,), (torch.ones_like(x),))[1],
    "torch.func.vjp": lambda f, x: torch.func.vjp(_sum(f), x)[1](torch.tensor(2.0))[0],
    "torch.func.jacrev": lambda f, x: torch.func.jacrev(f)(x[:1]),
    "torch.func.functionalize": lambda f, x: torch.func.functionalize(f)(x),
    "vmap of grad": lambda f, x: torch.func.vmap(torch.func.grad(lambda y: f(y[None]).sum()))(x),
    "grad of jvp": lambda f, x: torch.func.grad(
        lambda y: torch.func.jvp(f, (y,), (torch.ones_like(y),))[1].square().sum()
    )(x),
    "make_fx": lambda f, x: make_fx(f)(x)(x),
    "make_fx, symbolic": lambda f, x: make_fx(f, tracing_mode="symbolic", _allow_non_fake_inputs=True)(x)(x),
    "make_fx of grad": lambda f, x: make_fx(torch.func.grad(_sum(f)))(x)(x),
    "make_fx of functionalize": lambda f, x: make_fx(torch.func.functionalize(f))(x)(x),
    "forward-mode AD": _dual,
    "torch.autograd.functional.jvp": lambda f, x: torch.autograd.functional.jvp(f, x, torch.ones_like(x))[1],
    "torch.autograd.functional.vjp": lambda f, x: torch.autograd.functional.vjp(_sum(f), x)[1],
    "a gradient penalty": _penalty,
}


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.situation("`torch.func` transforms, `make_fx`, forward-mode AD, double backward", "works")
def test_transforms_give_the_original_s_values(name, model, fast, images):
    transform = TRANSFORMS[name]
    expected = transform(model, images)
    assert relative_error(transform(fast, images), expected) <= CLOSE


@pytest.mark.parametrize("kind", blocks.BLOCK_TYPES)
@pytest.mark.situation("The same transforms over single ops, `torch.ops.effv2.*`", "works")
def test_transforms_of_single_ops(kind, fast):
    block = next((b for b in fast.network.blocks if b.kind == kind), None)
    if block is None:  # of no family
        block, x, _ = block_case(of_kind(kind)[0])
    else:
        block = rebuilt(block, **{k: t.detach() for k, t in block.tensors().items()})
        x = input_of(block, fast)
    values = list(block.values().values())
    op = getattr(torch.ops.effv2, kind)
    for name, transform in TRANSFORMS.items():
        if name == "torch.func.jacrev":
            continue  # large, and made of the same parts
        expected = transform(lambda y: run_block(block, y), x)
        found = transform(lambda y: op(y, *values), x)
        # Of a linear block some are 0.
        assert torch.equal(found, expected) or relative_error(found, expected) <= CLOSE, name


def input_of(block, fast):
    """What the block is given in the network."""
    x = TINY.images(seeded(603), 1)
    for other in fast.network.blocks:
        if other.kind == block.kind:
            return x.detach()
        x = run_block(other, x)
    raise AssertionError(block.kind)


@pytest.mark.situation("`make_fx` on an optimised model", "works: the graph holds one call of the engine")
def test_make_fx_keeps_the_engine(fast, images):
    graph = make_fx(fast)(images)
    assert [n.target for n in graph.graph.nodes if "effv2" in str(n.target)] == [
        torch.ops.effv2.network.default
    ]


@pytest.mark.situation("`torch.func.functional_call` with other weights", "works: those are used")
def test_functional_call_uses_the_weights_that_it_is_given(fast, images):
    other = optimize(TINY.build(seeded(604)))
    before = fast(images)
    found = torch.func.functional_call(fast, dict(other.named_parameters()), (images,))
    assert torch.equal(found, other(images))
    one = {"blocks.7.bias": fast.blocks[-1].bias + 1}
    found = torch.func.functional_call(fast, one, (images,))
    assert torch.allclose(found, before + 1, atol=1e-4)
    assert torch.equal(fast(images), before)


@pytest.mark.situation("An ensemble: `stack_module_state`, `vmap` of `functional_call`", "works")
def test_an_ensemble(fast, images):
    other = optimize(TINY.build(seeded(604)))
    weights, buffers = torch.func.stack_module_state([fast, other])
    with torch.no_grad():
        found = torch.func.vmap(
            lambda w, b: torch.func.functional_call(fast, (w, b), (images,)), randomness="error"
        )(weights, buffers)
        for y, member in zip(found, (fast, other), strict=True):
            assert relative_error(y, member(images)) <= CLOSE


def test_functional_call_within_transforms(model, fast, images):
    """The gradient with respect to the input, at other weights."""
    other = TINY.build(seeded(604))
    weights = {k: v.detach() for k, v in optimize(other).named_parameters()}
    found = torch.func.grad(lambda x: torch.func.functional_call(fast, weights, (x,)).sum())(images)
    assert relative_error(found, torch.func.grad(_sum(other))(images)) <= CLOSE


@pytest.mark.parametrize("wrap", [torch.func.vmap, torch.func.functionalize, lambda f: f])
def test_bad_images_are_refused_within_transforms(wrap, fast):
    shape = (2, 1, 5, 32, 32) if wrap is torch.func.vmap else (1, 5, 32, 32)
    with pytest.raises(InputError, match="expected 3 channels"):
        wrap(fast)(torch.zeros(shape))


@pytest.mark.situation("Images whose memory was freed (sharding, offloading)", "refused: give their values")
def test_memory_that_is_not_there(fast, images):
    for freed in (images.clone(), torch.cat([images, images])[1:3]):
        freed.untyped_storage().resize_(0)
        with pytest.raises(InputError, match=r"beyond the 0 bytes that it holds"):
            fast(freed)
    short = torch.zeros(2, 3, 32, 32).transpose(2, 3)
    short.untyped_storage().resize_(short.untyped_storage().nbytes() - 4)
    with pytest.raises(InputError, match="reads beyond"):
        fast(short)
    block, x, _ = block_case(shapes.ffn(16, 48, 4, 4))
    weights = [t.clone() for t in block.tensors().values()]
    weights[2].untyped_storage().resize_(0)
    with pytest.raises(InputError, match="reads beyond"):
        torch.ops.effv2.ffn(x, *weights)
    with pytest.raises(cpu.native().NativeError, match="their address is 0"):
        fast.engine._network.run(0, images.shape, images.stride(), [images.data_ptr()], 1)


@pytest.mark.situation("Tensors of PyTorch's lazy kinds (negated, zero without memory, expanded)", "works")
def test_tensors_that_are_lazy(model, fast):
    x = TINY.images(seeded(605), 1)
    with plain_pytorch():
        assert relative_error(fast(x._neg_view()), model(-x)) <= CLOSE
        assert relative_error(fast(torch._efficientzerotensor(x.shape)), model(torch.zeros_like(x))) <= CLOSE
        one = x[:, :1]
        expanded = one.expand(-1, 3, -1, -1)
        assert relative_error(fast(expanded), model(expanded.contiguous())) <= CLOSE


def test_what_is_plain_goes_straight_to_the_engine(fast, images, monkeypatch):
    """In no_grad, inference mode and autocast, for parameters and views, and after every transform above."""
    calls = []
    original = type(fast.engine).run
    monkeypatch.setattr(type(fast.engine), "run", lambda *a: calls.append(a) or original(*a))
    monkeypatch.setattr(fast, "_indirectly", None)
    fast(images)
    with torch.no_grad():
        fast(images.clone().requires_grad_())
        fast(images[:1].transpose(2, 3))
    with torch.inference_mode():
        fast(images.clone())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fast(images.bfloat16())
    assert len(calls) == 5


def test_the_ops_agree_with_themselves_under_vmap():
    """The engine's rounding differs from PyTorch's, within the bound of a block."""
    block, x, expected = block_case(shapes.ffn(16, 48, 4, 4), 3)
    values = list(block.tensors().values())
    found = torch.func.vmap(lambda y: torch.ops.effv2.ffn(y, *values))(x[:, None])[:, 0]
    assert relative_error(found, expected) <= BLOCK_BOUND


@pytest.mark.alone
def test_the_checks_cost_a_plain_call_next_to_nothing():
    """10 us at most on a quiet machine, at any number of weights: no Python loop goes over them."""
    architecture = Architecture((8, 8, 16, 16), (5, 5, 15, 10), 1, (6, 6))
    fast = optimize(Spec("deep", architecture, img_size=32).build(seeded(606)), verify=False)
    assert len(fast._own) > 300
    x = torch.zeros(1, 3, 32, 32)
    with torch.no_grad():
        runs = timeit.repeat(lambda: (fast._is_plain(x), check_memory(x)), number=100, repeat=50)
    assert min(runs) / 100 < 40e-6
