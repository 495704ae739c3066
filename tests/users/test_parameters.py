"""Code around a model asks its parameters for device and dtype, counts them, averages and replaces them."""

import copy
import gzip
import io
import pickle
from pathlib import Path

import pytest
import torch
from checks import NETWORK_BOUND, assert_close, exact_network, seeded
from models import LEAST, name_of, relative_error
from torch import nn
from torch.nn.utils import parameters_to_vector, parametrizations, parametrize, prune, vector_to_parameters
from torch.optim.swa_utils import AveragedModel

from effv2_kernels import optimize
from effv2_kernels.errors import ModelError, UnavailableError
from effv2_kernels.model import OptimizedModel


@pytest.fixture(params=LEAST, ids=name_of)
def spec(request):
    return request.param


@pytest.fixture
def model(spec):
    return spec.build(seeded(611))


@pytest.fixture
def fast(model):
    return optimize(model)


@pytest.fixture
def other(spec):
    return optimize(spec.build(seeded(612)))


@pytest.fixture
def images(spec):
    return spec.images(seeded(613), 2)


@pytest.mark.situation("`next(model.parameters()).device` and `.dtype`", "works")
def test_device_and_dtype(fast):
    first = next(fast.parameters())
    assert (first.device.type, first.dtype) == ("cpu", torch.float32)
    assert isinstance(first, nn.Parameter)
    assert not any(p.requires_grad for p in fast.parameters())
    assert {id(p) for p in fast.parameters()} == {id(t) for t in fast._own}
    assert sum(p.numel() for p in fast.parameters()) == sum(t.numel() for t in fast.state_dict().values())


@pytest.mark.situation("`state_dict` of an optimised model", "works: plain tensors, by the same names")
def test_state_dict_holds_plain_tensors(fast):
    for name, value in fast.state_dict().items():
        assert type(value) is torch.Tensor, name
        assert not value.requires_grad
    assert list(fast.state_dict()) == [name for name, _ in fast.named_parameters()]


@pytest.mark.situation(
    "`model.requires_grad_(True)`, `p.requires_grad = True`", "works: weights get gradients"
)
@pytest.mark.parametrize("ask", ["model", "parameter", "attribute"])
def test_weights_get_gradients(ask, fast, images):
    weight = fast.blocks[-1].weight
    if ask == "model":
        fast.requires_grad_(True)
    elif ask == "parameter":
        weight.requires_grad_()
    else:
        weight.requires_grad = True
    y = fast(images)
    assert y.requires_grad
    y.sum().backward()
    assert (sum(p.grad is not None for p in fast.parameters()) == 1) == (ask != "model")
    pooled = torch.func.vmap(lambda m: m.mean((1, 2)))(feature_map(fast, images))
    assert relative_error(weight.grad, pooled.sum(0).expand_as(weight)) <= 1e-5
    with torch.no_grad():
        assert not fast(images).requires_grad
    assert copy.deepcopy(fast)(images).requires_grad
    assert pickle.loads(pickle.dumps(fast))(images).requires_grad
    fast.requires_grad_(False)
    assert not fast(images).requires_grad


def feature_map(fast, images):
    """What the head reads."""
    (y,) = fast.engine.run(images, 1, len(fast.network.blocks) - 1)
    return y


@pytest.mark.situation(
    "Fine-tuning the weights of an optimised model by an optimiser", "works: slower than in training form"
)
def test_an_optimiser_changes_what_runs(fast, images):
    fast.requires_grad_(True)
    optimiser = torch.optim.SGD(fast.parameters(), lr=1e-4)
    losses = []
    for _ in range(4):
        optimiser.zero_grad()
        loss = fast(images).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > losses[-1]


@pytest.mark.situation(
    "`p.data = …`, `vector_to_parameters`, `p.copy_(…)`, averages of weights", "works: noticed"
)
def test_changes_of_weights_are_noticed(fast, other, images):
    expected, original = other(images), fast(images)
    vector = parameters_to_vector(fast.parameters())
    vector_to_parameters(parameters_to_vector(other.parameters()), fast.parameters())
    assert torch.equal(fast(images), expected)
    vector_to_parameters(vector, fast.parameters())
    assert torch.equal(fast(images), original)
    for p, q in zip(fast.parameters(), other.parameters(), strict=True):
        p.data = q.data
    assert torch.equal(fast(images), expected)
    assert all(
        p.data_ptr() != q.data_ptr() for p, q in zip(fast.parameters(), other.parameters(), strict=True)
    )
    with torch.no_grad():
        torch._foreach_mul_(list(fast.parameters()), 0.5)
    assert not torch.equal(fast(images), expected)


@pytest.mark.situation("`AveragedModel` (SWA, EMA) around an optimised model", "works")
def test_an_average_of_weights(fast, other, images):
    average = AveragedModel(fast)
    average.update_parameters(fast)
    average.update_parameters(other)
    expected = copy.deepcopy(fast)
    with torch.no_grad():
        for p, q in zip(expected.parameters(), other.parameters(), strict=True):
            p.lerp_(q, 0.5)
    assert relative_error(average(images), expected(images)) <= 1e-6


@pytest.mark.situation(
    "`p.data = p.data.half()`, `.cuda()` weight by weight", "refused: move the model as a whole"
)
def test_data_that_does_not_fit(fast, images):
    expected, weight = fast(images), fast.blocks[1].dw_weight
    for wrong in (weight.half(), weight[:1], weight.to("meta")):
        with pytest.raises(ModelError, match=r"cannot become .*Move the model"):
            weight.data = wrong
    assert torch.equal(fast(images), expected)


@pytest.mark.parametrize(
    "change",
    [
        lambda part: prune.random_unstructured(part, "dw_weight", amount=0.3),
        lambda part: parametrizations.orthogonal(part, "dw_weight"),
        lambda part: nn.utils.weight_norm(part, "dw_weight"),
        lambda part: nn.utils.spectral_norm(part, "dw_weight"),
        lambda part: parametrize.register_parametrization(part, "dw_weight", nn.Identity()),
        lambda part: setattr(part, "dw_weight", nn.Parameter(torch.zeros(8, 3, 3))),
        lambda part: delattr(part, "dw_weight"),
        lambda part: part.register_parameter("more", nn.Parameter(torch.zeros(1))),
        lambda part: part.register_buffer("more", torch.zeros(1)),
    ],
)
@pytest.mark.situation(
    "Pruning and parametrizing weights of an optimised model", "refused: do it before `optimize()`"
)
def test_weights_that_would_become_something_else(change, fast, images):
    expected, names = fast(images), [name for name, _ in fast.named_parameters()]
    with pytest.raises(ModelError):
        change(fast.blocks[1])
    assert torch.equal(fast(images), expected)
    assert [name for name, _ in fast.named_parameters()] == names


def test_loading_by_swapping_tensors_is_refused(fast, other, images):
    expected = fast(images)
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        with pytest.raises(UnavailableError, match="loads weights in place"):
            fast.load_state_dict(other.state_dict())
        fast.to("cpu").float()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    assert torch.equal(fast(images), expected)


def test_gradients_of_weights_survive_a_move(fast):
    fast.blocks[1].dw_weight.requires_grad_()
    fast.to("meta").to_empty(device="cpu")
    assert [name for name, p in fast.named_parameters() if p.requires_grad] == ["blocks.1.dw_weight"]
    assert fast._ledger.gradients


@pytest.mark.situation("Pickles of an earlier version", "works")
def test_a_pickle_of_the_version_before():
    with gzip.open(Path(__file__).with_name("optimised_by_0_1_0.pickle.gz")) as file:
        fast = pickle.load(file)
    assert type(fast) is OptimizedModel
    x = torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32)
    (expected,) = exact_network(fast.network, x)
    assert_close(fast(x), expected, 4 * NETWORK_BOUND)
    assert abs(float(fast(x)[0, 0]) + 2.0494) < 1e-3
    assert not any(p.requires_grad for p in fast.parameters())
    fast.blocks[-1].bias.add_(1)
    assert_close(fast(x), expected + 1, 4 * NETWORK_BOUND)


@pytest.mark.situation(
    "Changes through `p.data.add_(…)` or a shared NumPy array", "works after `p.add_(0)` on any parameter"
)
@pytest.mark.parametrize("how", ["data", "numpy"])
def test_changes_that_pytorch_does_not_count(how, fast, images):
    """They cannot be seen; README says what to call after them."""
    before, bias = fast(images), fast.blocks[-1].bias
    if how == "data":
        bias.data.add_(1)
    else:
        bias.numpy()[:] += 1
    with torch.no_grad():
        next(fast.parameters()).add_(0)
    assert torch.allclose(fast(images), before + 1, atol=1e-4)


@pytest.mark.parametrize("optimiser", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.situation("Fused optimisers, which do not count what they write", "works: noticed")
def test_fused_optimisers(optimiser, fast, images):
    fast.requires_grad_(True)
    optimiser = optimiser(fast.parameters(), lr=1e-3, fused=True)
    for _ in range(3):
        optimiser.zero_grad()
        y = fast(images)
        with torch.no_grad():
            assert torch.equal(y, fast(images))
            assert torch.equal(y, copy.deepcopy(fast)(images)), "what runs is not what the weights say"
        y.square().mean().backward()
        optimiser.step()


@pytest.mark.situation(
    "A single weight copied, pickled, saved with `weights_only`", "works: an ordinary parameter"
)
def test_single_weights(fast):
    weight = next(fast.parameters())
    for same in (copy.deepcopy(weight), pickle.loads(pickle.dumps(weight))):
        assert type(same) is nn.Parameter
        assert torch.equal(same, weight)
        same.data = same.data.half()
    assert len(pickle.dumps(weight)) < 5000
    file = io.BytesIO()
    torch.save(dict(fast.named_parameters()), file)
    file.seek(0)
    assert list(torch.load(file, weights_only=True)) == list(fast.state_dict())
