"""The optimised module: state dict, copies, pickles, moves, and what it refuses."""

import copy
import io
import pickle

import pytest
import torch
from checks import seeded
from models import FAMILIES, name_of
from torch import nn

from effv2_kernels import optimize
from effv2_kernels.errors import Effv2Error, ModelError, UnavailableError


@pytest.fixture(params=FAMILIES, ids=name_of)
def spec(request):
    return request.param


@pytest.fixture
def model(spec):
    return spec.build(seeded(50))


@pytest.fixture
def images(spec):
    return spec.images(seeded(51), 2)


@pytest.fixture
def fast(model):
    return optimize(model)


def test_state_dict_names_the_fields_of_the_blocks(fast):
    state = fast.state_dict()
    assert [name for name, _ in fast.named_parameters()] == list(state)
    assert list(fast.buffers()) == []
    assert {"blocks.1.fc2_bias", f"blocks.{len(fast.network.blocks) - 1}.weight"} <= set(state)
    blocks = fast.network.blocks
    assert len(state) == sum(len(block.tensors()) for block in blocks)
    for i, block in enumerate(blocks):
        for name, tensor in block.tensors().items():
            assert torch.equal(state[f"blocks.{i}.{name}"], tensor)
            assert tensor.is_contiguous()


@pytest.mark.parametrize("assign", [False, True])
def test_load_state_dict_changes_what_runs(fast, images, assign, spec):
    other = optimize(spec.build(seeded(56)))
    expected = other(images)
    assert not torch.equal(fast(images), expected)
    result = fast.load_state_dict(copy.deepcopy(other.state_dict()), assign=assign)
    assert not result.missing_keys
    assert torch.equal(fast(images), expected)
    fast.blocks[-1].bias.add_(1)  # still tied to the engine
    assert torch.allclose(fast(images), expected + 1, atol=1e-4)


def test_load_state_dict_refuses_what_does_not_fit(fast):
    state = fast.state_dict()
    state.pop("blocks.1.dw_bias")
    state["blocks.1.dw_weight"] = state["blocks.1.dw_weight"][:-1]
    with pytest.raises(RuntimeError, match=r"(?s)Missing key.*dw_bias.*size mismatch for blocks.1.dw_weight"):
        fast.load_state_dict(state)


def test_weights_changed_in_place_are_packed_anew(fast, images):
    before = fast(images)
    fast.blocks[-1].bias += 1
    assert torch.allclose(fast(images), before + 1, atol=1e-4)
    with torch.inference_mode():
        fast.blocks[-1].bias += 1
        assert torch.allclose(fast(images), before + 2, atol=1e-4)


def test_weights_cannot_be_replaced(fast):
    with pytest.raises(
        ModelError, match=r"'bias' of an optimised model cannot be replaced; change it in place"
    ):
        fast.blocks[-1].bias = torch.zeros(10)


def test_deepcopy_is_independent(fast, images):
    expected = fast(images)
    other = copy.deepcopy(fast)
    assert torch.equal(other(images), expected)
    other.blocks[-1].bias.add_(1)
    assert torch.equal(fast(images), expected)
    assert torch.allclose(other(images), expected + 1, atol=1e-4)


def test_copy_shares_the_weights(fast, images):
    expected = fast(images)
    other = copy.copy(fast)
    assert torch.equal(other(images), expected)
    other.blocks[-1].bias.add_(1)
    for m in (fast, other):
        assert torch.allclose(m(images), expected + 1, atol=1e-4)


def test_deepcopy_of_a_larger_module(fast, images):
    larger = nn.Sequential(fast, nn.Linear(10, 2))
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(larger)(images), larger(images))


def test_pickle(fast, images):
    expected = fast(images)
    data = pickle.dumps(fast)
    weights = sum(t.nbytes for t in fast.state_dict().values())
    assert len(data) < weights + 100_000, "the weights were stored more than once"
    other = pickle.loads(data)
    assert torch.equal(other(images), expected)
    assert other.state_dict().keys() == fast.state_dict().keys()
    other.blocks[-1].bias.add_(1)
    assert torch.allclose(other(images), expected + 1, atol=1e-4)
    assert torch.equal(fast(images), expected)


def test_torch_save(fast, images):
    file = io.BytesIO()
    torch.save(fast, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(images), fast(images))
    file = io.BytesIO()
    torch.save(fast.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert all(torch.equal(state[k], v) for k, v in fast.state_dict().items())


def test_moves_that_change_nothing(fast, images):
    expected = fast(images)
    for moved in (
        fast.to("cpu"),
        fast.cpu(),
        fast.float(),
        fast.to(torch.float32),
        fast.eval(),
        fast.requires_grad_(),
    ):
        assert moved is fast
        assert torch.equal(fast(images), expected)
    fast.to(memory_format=torch.channels_last)
    fast.share_memory()
    assert torch.equal(fast(images), expected)


def test_weights_that_come_back_to_the_cpu(fast, images):
    expected = fast(images)
    state = copy.deepcopy(fast.state_dict())
    fast.to("meta")
    assert all(t.is_meta for t in fast.state_dict().values())
    fast.to_empty(device="cpu")
    fast.load_state_dict(state)
    assert torch.equal(fast(images), expected)


@pytest.mark.parametrize(
    "cast", [nn.Module.half, nn.Module.double, nn.Module.bfloat16, lambda m: m.to(torch.float16)]
)
def test_other_precisions_are_refused(fast, images, cast):
    expected = fast(images)
    with pytest.raises(UnavailableError, match=r"cannot be cast to torch.*optimize\(model, dtype=...\)"):
        cast(fast)
    assert torch.equal(fast(images), expected)


def test_training_is_refused(fast):
    with pytest.raises(ModelError, match=r"has no training mode.*Train the model it was made from"):
        fast.train()
    assert fast.train(False) is fast
    with pytest.raises(ModelError, match="has no training mode"):
        nn.Sequential(fast, nn.Linear(10, 2)).train()


@pytest.mark.parametrize(
    ("change", "undo"),
    [(nn.Module.train, nn.Module.eval), (nn.Module.half, nn.Module.float)],
    ids=["train", "half"],
)
def test_a_refusal_says_how_to_undo_what_a_larger_module_did_before(fast, images, change, undo):
    """PyTorch changes the parts of a module one after the other."""
    larger = nn.Sequential(nn.BatchNorm2d(3), fast).eval()
    expected = larger(images)
    with pytest.raises(Effv2Error, match=rf"call {undo.__name__}\(\) on the whole"):
        change(larger)
    undo(larger)
    assert torch.equal(larger(images), expected)
    assert larger[0].num_batches_tracked == 0


def test_parts_cannot_be_called(fast, images):
    with pytest.raises(
        ModelError, match=f"holds the weights of a {fast.blocks[0].kind} and cannot be called"
    ):
        fast.blocks[0](images)


def test_inference_mode_all_the_way(model, images):
    with torch.inference_mode():
        fast = optimize(model)
        y = fast(images)
        fast.blocks[-1].bias.add_(1)
        assert torch.allclose(fast(images), y + 1, atol=1e-4)
    assert torch.allclose(fast(images), y + 1, atol=1e-4)
    assert torch.equal(y, optimize(model)(images))


def test_copies_made_in_inference_mode(fast, images):
    expected = fast(images)
    with torch.inference_mode():
        copies = [copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))]
        assert all(torch.equal(made(images), expected) for made in copies)
    for made in copies:
        made.blocks[-1].bias += 1
        assert torch.allclose(made(images), expected + 1, atol=1e-4)


def test_moves_in_inference_mode(fast):
    with torch.inference_mode():
        moved = fast.to("meta")  # as to a GPU: another tensor
    assert moved._flat.is_meta
    assert not moved._flat.is_inference()


def test_repr_says_what_it_is(fast):
    text = repr(fast)
    assert f"source={fast.network.source}" in text
    for block in fast.network.blocks:
        assert block.kind in text
    assert "dtype=fp32" in text
