"""Code around a module reads attributes of it, sets some of its own, and hooks or replaces parts of it."""

import copy
import pickle
import threading
from typing import ClassVar

import pytest
import torch
from checks import seeded
from models import TINY, timm_odd
from torch import nn

from effv2_kernels import optimize
from effv2_kernels.errors import Effv2Error, ModelError, UnavailableError


@pytest.fixture
def model():
    return TINY.build(seeded(621))


@pytest.fixture
def fast(model):
    return optimize(model)


@pytest.fixture
def images():
    return TINY.images(seeded(622), 1)


@pytest.mark.situation(
    "Detectors number their layers: `m.f`, `m.i`, `m.type`, `m.np`, `m.backbone`", "works: carried over"
)
def test_attributes_of_detectors(model):
    model.f, model.i, model.type, model.backbone = -1, 0, "backbone", True
    model.np = 12345
    model.channel = [8, 8, 16, 16]
    fast = optimize(model)
    for same in (fast, copy.deepcopy(fast), pickle.loads(pickle.dumps(fast)), copy.copy(fast)):
        assert (same.f, same.i, same.type, same.backbone, same.np) == (-1, 0, "backbone", True, 12345)
        assert same.channel == [8, 8, 16, 16]
    assert fast.channel is not model.channel
    fast.f = 7
    assert model.f == -1


@pytest.mark.situation(
    "`feature_info`, `num_features`, `default_cfg`, `out_indices`, `num_classes`", "works: carried over"
)
def test_attributes_of_timm():
    model = timm_odd(seeded(623))
    model.default_cfg = {"input_size": (1, 64, 96)}
    fast = optimize(model)
    for name in (
        "feature_info",
        "num_features",
        "head_hidden_size",
        "num_classes",
        "global_pool",
        "default_cfg",
    ):
        assert getattr(fast, name) == getattr(model, name), name
    features = pytest.importorskip("timm").create_model(
        "efficientformerv2_s0", img_size=32, features_only=True, out_indices=(1, 3)
    )
    features.eval()
    fast = optimize(features)
    assert fast.feature_info.channels() == features.feature_info.channels()
    assert fast.feature_info.reduction() == [8, 32]


def test_attributes_that_a_class_declares():
    class Backbone(type(TINY.build(seeded(1)))):
        strides = (4, 8, 16, 32)
        names: ClassVar = ["a"]

        def helper(self):
            return 1

        @property
        def size(self):
            return 2

    model = TINY.build(seeded(624))
    model.__class__ = Backbone
    fast = optimize(model)
    assert fast.strides == (4, 8, 16, 32)
    assert fast.names == ["a"]
    assert fast.names is not Backbone.names
    assert not hasattr(fast, "helper")
    assert not hasattr(fast, "size")


def test_attributes_of_parts(model, images):
    """With strict=False each part carries its own."""

    class Changed(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.rest = model.stem, model.stages
            self.stem.i = 3
            self.eval()

        def forward(self, x):
            return self.rest(torch.sigmoid(self.stem(x)))

    fast = optimize(Changed(), strict=False)
    assert fast.stem.i == 3
    fast(images)


def test_values_that_cannot_be_copied_are_shared(model):
    model.lock = threading.Lock()
    assert optimize(model).lock is model.lock


@pytest.mark.situation("Attributes that refer to inner modules", "left out: an optimised model has none")
def test_values_that_hold_modules_are_left_out(model):
    model.layers = [model.stem, model.stages]
    model.by_name = {"stem": {"it": model.stem}}
    model.method = model.stem.forward
    model.kept = 1
    fast = optimize(model)
    assert not any(hasattr(fast, name) for name in ("layers", "by_name", "method"))
    assert fast.kept == 1


@pytest.mark.parametrize("name", ["blocks", "features", "threads", "engine", "network", "_flat", "_tail"])
@pytest.mark.situation("An attribute of a name that the result uses itself", "refused: rename it")
def test_names_that_the_result_uses_itself(name, model):
    setattr(model, name, 5)
    with pytest.raises(ModelError, match=rf"names that an optimised model uses itself: '{name}'"):
        optimize(model)


@pytest.mark.situation(
    "Inner modules: `model.stages`, `model.get_classifier()`", "refused, as an `AttributeError`"
)
def test_attributes_that_are_missing(fast):
    with pytest.raises(AttributeError, match=r"an optimised model has no 'stages'.*Ask the model") as error:
        _ = fast.stages
    assert isinstance(error.value, Effv2Error)
    assert not hasattr(fast, "module")
    assert getattr(fast, "get_classifier", None) is None


@pytest.mark.parametrize(
    "register",
    [
        "register_forward_hook",
        "register_forward_pre_hook",
        "register_full_backward_hook",
        "register_full_backward_pre_hook",
        "register_backward_hook",
    ],
)
@pytest.mark.situation("Hooks on inner parts (activations, Grad-CAM)", "refused: they would never run")
def test_hooks_on_parts(register, fast):
    for part in (fast.blocks, fast.blocks[0], fast.blocks[-1]):
        with pytest.raises(ModelError, match=r"a hook on .* has no effect"):
            getattr(part, register)(lambda *a: None)


@pytest.mark.situation("Hooks on the optimised model itself", "works")
def test_hooks_on_the_model(fast, images):
    calls = []
    fast.register_forward_pre_hook(lambda m, args: calls.append("before"))
    handle = fast.register_forward_hook(lambda m, args, y: calls.append("after") or y + 1)
    y = fast(images)
    assert calls == ["before", "after"]
    handle.remove()
    assert torch.allclose(fast(images), y - 1, atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        lambda f: setattr(f, "head", nn.Linear(3, 4)),
        lambda f: setattr(f, "blocks", nn.ModuleList()),
        lambda f: setattr(f, "blocks", 2),
        lambda f: setattr(f, "extra", nn.Parameter(torch.zeros(1))),
        lambda f: f.add_module("head", nn.Identity()),
        lambda f: f.register_module("head", nn.Identity()),
        lambda f: f.register_buffer("mean", torch.zeros(3)),
        lambda f: f.register_parameter("more", nn.Parameter(torch.zeros(3))),
        lambda f: delattr(f, "blocks"),
        lambda f: f.blocks.__setitem__(0, nn.Identity()),
        lambda f: f.blocks.append(nn.Identity()),
        lambda f: f.blocks.insert(0, nn.Identity()),
        lambda f: f.blocks.extend([nn.Identity()]),
        lambda f: f.blocks.pop(0),
        lambda f: setattr(f.blocks[0], "extra", nn.Identity()),
    ],
)
@pytest.mark.situation(
    "`model.head = nn.Linear(…)` and other changes of parts", "refused: they would change nothing"
)
def test_changes_of_parts(change, fast, images):
    expected, names = fast(images), [name for name, _ in fast.named_modules()]
    with pytest.raises(ModelError):
        change(fast)
    assert torch.equal(fast(images), expected)
    assert [name for name, _ in fast.named_modules()] == names


@pytest.mark.situation(
    "A layer behind an optimised model, `nn.Sequential(model, layer)`", "works, and trains that layer"
)
def test_a_layer_behind_it(fast, images):
    larger = nn.Sequential(fast, nn.Linear(10, 2)).eval()
    larger(images).sum().backward()
    assert larger[1].weight.grad is not None
    assert all(p.grad is None for p in fast.parameters())


@pytest.mark.situation(
    "`nn.DataParallel` around an optimised model, several GPUs", "refused: one process for each"
)
def test_data_parallel(fast, images):
    assert torch.equal(nn.DataParallel(fast)(images), fast(images))  # without a GPU it only calls the module
    with pytest.raises(UnavailableError, match="once for each GPU"):
        fast._replicate_for_data_parallel()
