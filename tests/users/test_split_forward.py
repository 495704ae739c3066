"""Wrappers call the two halves of a classifier: its features, and what its head makes of them."""

import copy
import pickle

import pytest
import torch
from checks import PackingCounter, plain_pytorch, seeded
from models import SMALL, TINY, randomise, relative_error, timm_odd
from torch.fx.experimental.proxy_tensor import make_fx

from effv2_kernels import load, optimize, save
from effv2_kernels.errors import InputError, ModelError

CLOSE = 5e-6  # fp32 against fp32, weights of any size


@pytest.fixture(scope="module", params=[3, 0])
def model(request):
    return timm_odd(seeded(631), num_classes=request.param)


@pytest.fixture(scope="module")
def images():
    return torch.randn(5, 1, 64, 96, generator=seeded(632))


@pytest.mark.situation(
    "`backbone.forward_features(x)`, `forward_head(x, pre_logits=True)`", "works, on the same packed weights"
)
def test_both_halves(model, images, monkeypatch):
    fast = optimize(model)
    counter = PackingCounter(monkeypatch)
    with plain_pytorch():
        for x in (images, images[:1], images.contiguous(memory_format=torch.channels_last)):
            expected = model.forward_features(x)
            found = fast.forward_features(x)
            assert found.shape == expected.shape
            assert relative_error(found, expected) <= CLOSE
            for how in ({}, {"pre_logits": True}):
                y = fast.forward_head(found, **how)
                assert relative_error(y, model.forward_head(expected, **how)) <= CLOSE
            assert relative_error(fast.forward_head(found), fast(x)) <= CLOSE
    assert counter.count == 0
    assert not any("norm" in name or "tail" in name for name in fast.state_dict())


def test_copies_and_pickles_keep_them(model, images):
    fast = optimize(model)
    with plain_pytorch():
        expected = fast.forward_features(images)
        for same in (copy.deepcopy(fast), copy.copy(fast), pickle.loads(pickle.dumps(fast))):
            assert torch.equal(same.forward_features(images), expected)


def test_gradients_and_transforms(model, images):
    fast = optimize(model)

    def both(m):
        return lambda x: m.forward_head(m.forward_features(x)).square().sum()

    x = images[:2].clone().requires_grad_()
    (found,) = torch.autograd.grad(both(fast)(x), x)
    (expected,) = torch.autograd.grad(both(model)(x), x)
    assert relative_error(found, expected) <= 4 * CLOSE
    found = torch.func.grad(both(fast))(images[:2])
    assert relative_error(found, expected) <= 4 * CLOSE


def test_changed_weights_of_the_head(images):
    fast = optimize(timm_odd(seeded(633)))
    with torch.no_grad():
        before = fast.forward_head(fast.forward_features(images))
        fast.blocks[-1].bias += 1
        assert torch.allclose(fast.forward_head(fast.forward_features(images)), before + 1, atol=1e-4)
        assert torch.allclose(fast(images), before + 1, atol=1e-4)


class Halves(torch.nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net.forward_head(self.net.forward_features(x))


@pytest.mark.situation("The two halves under `torch.compile`, `torch.export`, `make_fx`", "works")
def test_compilers_and_exporters(images):
    fast = optimize(timm_odd(seeded(634)))
    halves = Halves(fast)
    with torch.no_grad():
        features, expected = fast.forward_features(images), fast(images)
        compiled = torch.compile(fast.forward_features, backend="aot_eager", fullgraph=True)
        assert relative_error(compiled(images), features) <= CLOSE
        compiled = torch.compile(fast.forward_head, backend="aot_eager", fullgraph=True)
        assert relative_error(compiled(features), expected) <= CLOSE
        program = torch.export.export(halves, (images,))
        assert relative_error(program.module()(images), expected) <= CLOSE
        assert relative_error(make_fx(halves)(images)(images), expected) <= CLOSE


@pytest.mark.situation("`forward_features` of a network from a file", "refused: `optimize()` the original")
def test_a_network_from_a_file(images, tmp_path):
    save(optimize(timm_odd(seeded(635))), tmp_path / "a.effv2")
    loaded = load(tmp_path / "a.effv2")
    for call in (loaded.forward_features, loaded.forward_head):
        with pytest.raises(ModelError, match=r"folded away in files: call optimize\(\) on the original"):
            call(images)


@pytest.mark.situation("`forward_features` of a backbone that returns maps", "refused: call it")
def test_a_backbone():
    fast = optimize(TINY.build(seeded(636), features_only=True))
    with pytest.raises(ModelError, match="has no classifier: call the model itself"):
        fast.forward_features(TINY.images(seeded(637)))


def test_our_own_model(monkeypatch):
    """It has no such methods; the last norm is the same."""
    spec = SMALL[0]
    model = spec.build(seeded(638))
    images = spec.images(seeded(639), 2)
    fast = optimize(model)
    with plain_pytorch():
        expected = model.norm(model.stages(model.stem(images)))
        assert relative_error(fast.forward_features(images), expected) <= CLOSE


def test_a_channel_that_the_norm_drops():
    model = timm_odd(seeded(640))
    with torch.no_grad():
        model.norm.weight[3] = 0
    fast = optimize(model)
    images = torch.randn(1, 1, 64, 96, generator=seeded(641))
    with plain_pytorch():
        features = fast.forward_features(images)
        assert relative_error(features, model.forward_features(images)) <= CLOSE
        expected = model.forward_head(features, pre_logits=True)
        assert relative_error(fast.forward_head(features, pre_logits=True), expected) <= CLOSE
        with pytest.raises(ModelError, match="the scale of its last norm is 0"):
            fast.forward_head(features)


def test_what_is_no_feature_map(images):
    fast = optimize(timm_odd(seeded(642)))
    for wrong in (torch.zeros(2, 56), None, torch.zeros(1, 56, 2, 3, dtype=torch.int64)):
        with pytest.raises(InputError, match=r"takes what forward_features returns, \(N, 56, H, W\)"):
            fast.forward_head(wrong)
    with pytest.raises(InputError, match="expected 1 channels"):
        fast.forward_features(torch.zeros(1, 3, 64, 96))


def test_several_images_of_every_number():
    """Groups and teams of threads divide the network elsewhere when it stops before its end."""
    model = randomise(timm_odd(seeded(643)), seeded(644))
    fast = optimize(model)
    images = torch.randn(19, 1, 64, 96, generator=seeded(645))
    whole = fast.forward_features(images)
    for n in (1, 2, 3, 4, 7, 16):
        assert torch.equal(fast.forward_features(images[:n]), whole[:n])
