"""Optimised models in graphs: torch.compile, torch.export, tracing, fake tensors, gradients."""

import copy
import io

import pytest
import torch
from checks import PackingCounter, assert_close, one_torch_thread, seeded
from models import FAMILIES, LEAST, SMALL, SMALL_MOBILE, name_of

from effv2_kernels import optimize
from effv2_kernels.errors import InputError
from effv2_kernels.reference import run


@pytest.fixture(autouse=True)
def quiet_pytorch():
    torch._dynamo.reset()  # it gives up on a function that it has compiled for several models
    with one_torch_thread():
        yield


@pytest.fixture(params=LEAST, ids=name_of)
def fast_and_images(request):
    g = seeded(34)
    return optimize(request.param.build(g)), request.param.images(g, 3)


def test_compiles_without_a_graph_break(fast_and_images, monkeypatch):
    fast, images = fast_and_images
    counter = PackingCounter(monkeypatch)
    compiled = torch.compile(fast, fullgraph=True)
    with torch.no_grad():
        for batch in (3, 3, 1, 2):
            assert torch.equal(compiled(images[:batch]), fast(images[:batch]))
    assert counter.count == 0, "the graph packed the weights again"


WRONG = {
    "dtype": (lambda x: x.double(), r"got torch.float64.*x.float\(\)"),
    "rank": (lambda x: x[0], r"rank 4 \(N, 3, H, W\).*unsqueeze"),
    "channels": (lambda x: torch.cat([x, x[:, :2]], 1), "expected 3 channels.*but got 5"),
    "layout": (lambda x: x.permute(0, 2, 3, 1), "expected 3 channels.*permute"),
    "batch": (lambda x: x[:0], "batch is empty"),
}


@pytest.mark.filterwarnings("ignore:.*Dynamo does not know how to trace")
@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_images_of_a_compiled_model(wrong):
    """The same error as without a compiler, and as short where it was told to compile all or nothing."""
    fast, images = optimize(SMALL[0].build(seeded(34))), SMALL[0].images(seeded(35), 2)
    change, message = WRONG[wrong]
    with torch.no_grad(), pytest.raises(InputError, match=message):
        torch.compile(fast, backend="aot_eager")(change(images))
    with torch.no_grad(), pytest.raises(Exception, match=message) as all_or_nothing:
        torch.compile(fast, fullgraph=True, backend="aot_eager")(change(images))
    assert len(str(all_or_nothing.value)) < 3000


def test_wrong_images_of_an_exported_model():
    fast, images = optimize(SMALL[0].build(seeded(34))), SMALL[0].images(seeded(35), 2)
    with pytest.raises(InputError, match=r"got torch\.float64"):
        torch.export.export(fast, (images.double(),))


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
@pytest.mark.parametrize("spec", FAMILIES, ids=name_of)
def test_exports_runs_and_loads_again(spec, features):
    g = seeded(35)
    fast, images = optimize(spec.build(g, features_only=features)), spec.images(g, 3)
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


@pytest.mark.parametrize(
    ("spec", "options"), [(SMALL[0], {"resize_bias": True}), (SMALL_MOBILE[0], {})], ids=["resized", "none"]
)
def test_exports_with_dynamic_height_and_width(spec, options):
    """Where no bias is made for one size, any works, and the graph knows how outputs follow from it."""
    g = seeded(36)
    model = spec.build(g, features_only=True, **options)
    fast, images = optimize(model), spec.images(g, 2)
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


@pytest.mark.parametrize("spec", FAMILIES, ids=name_of)
def test_gradients_are_those_of_the_blocks(spec):
    """The same operations, so that even activations with kinks differ by rounding alone."""
    g = seeded(38)
    fast, images = optimize(spec.build(g)), spec.images(g, 2).requires_grad_()
    upstream = torch.randn(2, 10, generator=g)
    (found,) = torch.autograd.grad(fast(images), images, upstream)
    (expected,) = torch.autograd.grad(run(fast.network, images), images, upstream)
    assert_close(found, expected.double(), 1e-6)


def test_no_graph_is_kept_where_none_is_asked_for(fast_and_images):
    fast, images = fast_and_images
    images.requires_grad_()
    with torch.no_grad():
        assert not fast(images).requires_grad
    with torch.inference_mode():
        assert not fast(images).requires_grad
    assert not fast(images.detach()).requires_grad
    assert fast(images).requires_grad
