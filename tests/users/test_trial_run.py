"""People look at what ``optimize`` does to the model that they give: it runs it once, on a random image.

Caches, counts of hooks and random numbers stay as they were, what was found is shown, and who knows better
can leave the run out.
"""

import copy

import edited_copies
import pytest
import torch
from checks import one_torch_thread
from edited_copies import (
    BIAS,
    TIMM_SIZES,
    assert_refused,
    assert_same,
    official_copy,
    official_model,
    own_model,
    timm_class,
)
from models import randomise, relative_error
from torch import nn

from effv2_kernels import explain, optimize
from effv2_kernels.errors import ModelError

weights = edited_copies.weights  # a fixture


@pytest.fixture(autouse=True)
def one_thread():
    with one_torch_thread():
        yield


def caches(model):
    return {
        name: dict(m.attention_bias_cache)
        for name, m in model.named_modules()
        if hasattr(m, "attention_bias_cache")
    }


def test_the_run_leaves_nothing_behind(generator):
    model = randomise(timm_class()(**TIMM_SIZES), generator)
    images = torch.randn(1, 3, 64, 64, generator=generator)
    wrapper = nn.Sequential(nn.Identity(), model).eval()
    counted = []
    wrapper.register_forward_hook(lambda *_: counted.append("wrapper"))
    wrapper[0].register_forward_pre_hook(lambda *_: counted.append("beside"))
    watch = torch.nn.modules.module.register_module_forward_hook(lambda *_: counted.append("anywhere"))
    attributes = [dict(vars(m)) for m in model.modules()]
    state = torch.get_rng_state()
    try:
        optimize(wrapper)
    finally:
        watch.remove()
    assert counted == []
    assert torch.equal(torch.get_rng_state(), state)
    assert caches(model)
    assert not any(caches(model).values())
    assert all(a == dict(vars(m)) for a, m in zip(attributes, model.modules(), strict=True))
    with torch.no_grad():
        model(images)
    filled = caches(model)
    assert all(filled.values())
    optimize(wrapper)
    for name, cache in caches(model).items():
        assert all(value is filled[name][key] for key, value in cache.items()), name


def test_settings_of_the_process_do_not_matter(generator):
    """Autocast, inference mode, gradients: the run is made without them, and leaves them as they were."""
    model = randomise(timm_class()(**TIMM_SIZES), generator)
    with torch.autocast("cpu", torch.bfloat16):
        assert optimize(model)._verified < 1e-5
        assert torch.is_autocast_enabled("cpu")
    with torch.inference_mode():
        assert optimize(model)._verified < 1e-5
    assert torch.is_grad_enabled()
    assert all(p.grad is None for p in model.parameters())


# What the caller is told, and can choose.


def test_the_error_that_was_found_is_shown(generator):
    model = randomise(official_model(), generator)
    fast = optimize(model)
    assert 0 < fast._verified < 1e-5
    assert f"verified: relative error {fast._verified:.1e} on one random image" in str(explain(fast))
    assert explain(copy.deepcopy(fast)).verified == explain(fast).verified
    assert "not verified" in str(explain(optimize(model, verify=False)))


def test_no_run_where_none_is_wanted(generator, monkeypatch):
    calls = []
    model = randomise(official_model(official_copy()), generator)
    usual = type(model).forward
    monkeypatch.setattr(type(model), "forward", lambda self, x: calls.append(x) or usual(self, x))
    optimize(model, verify=False)
    assert calls == []
    optimize(model)
    assert 1 <= len(calls) <= 3


def test_a_call_is_what_explain_shows_and_not_the_run(generator):
    fast = optimize(randomise(official_model(fork_feat=True, dense=True), generator))
    assert fast.engine.last_size is None


@pytest.mark.situation(
    "optimise the parts of a changed model with `strict=False`", "works: wrong parts stay in PyTorch"
)
def test_each_part_is_run_where_the_whole_is_not_wanted(weights, generator):
    """A block that computes something else stays in PyTorch, the others are optimised."""
    copied = official_copy(
        (
            "return x + self.drop_path(self.layer_scale_2 * self.mlp(x))",
            "return x + self.drop_path(self.layer_scale_2 * self.mlp(x * self.factor))",
        ),
        ("        self.use_layer_scale = True\n", "        self.use_layer_scale, self.factor = True, 1\n"),
    )
    model = weights(official_model(copied))
    images = torch.randn(1, 3, 64, 64, generator=generator)
    assert_same(model, images)
    model.network[0][0].factor = 2
    assert_refused(model, r"first part that differs is 'network.0.0' \(Unit\)")
    fast = optimize(model, strict=False)
    assert type(fast.network[0][0]) is copied.Unit
    assert type(fast.network[2][0]) is not copied.Unit
    with torch.no_grad():
        assert relative_error(fast(images), model(images)) < 1e-5
    shown = explain(fast)
    (left,) = [part for part in shown.left if part.path == "network.0"]
    assert "does not compute what its structure says" in left.reason
    assert "verified: " in shown.verified
    assert explain(copy.deepcopy(fast)).left == shown.left


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_where_a_gpu_would_run_nothing_is_compiled(weights, dtype, monkeypatch):
    """The blocks run in the reference instead, in the precision that was asked for."""
    pytest.importorskip("triton")
    from effv2_kernels.gpu.engine import Engine

    monkeypatch.setattr(Engine, "run", lambda *_: pytest.fail("the engine ran"))
    for model in (own_model(), own_model().half()):
        fast = optimize(weights(model), backend="triton", dtype=dtype)
        halves = dtype == "fp16" or next(model.parameters()).dtype == torch.float16
        # Of five values it may be 0 by chance; where nothing was verified it is None.
        assert 0 <= fast._verified < (2e-2 if halves else 1e-5)
    changed = weights(official_model(official_copy(BIAS)))
    with pytest.raises(ModelError, match="does not compute"):
        optimize(changed, backend="triton", dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_model_of_another_precision(weights, dtype):
    model = weights(official_model()).to(dtype)
    model.eval()
    assert 0 < optimize(model, dtype="fp32")._verified < 2e-2
    model.head.float()
    assert 0 < optimize(model, dtype="fp32")._verified < 1e-4
    changed = weights(official_model(official_copy(BIAS))).to(dtype)
    changed.eval()
    with pytest.raises(ModelError, match="does not compute"):
        optimize(changed, dtype="fp32")


def test_rounding_errors_of_the_original_are_no_difference(generator):
    """Large values that cancel in the classifier: what is optimised is nearer to float64 than PyTorch is."""
    model = randomise(official_model(), generator)
    with torch.no_grad():
        model.norm.bias.add_(1e5)
        for head in (model.head, model.dist_head):
            head.weight.sub_(head.weight.mean(1, keepdim=True))
    images = torch.randn(1, 3, 64, 64, generator=generator)
    exact = copy.deepcopy(model).double()
    exact.eval()
    with torch.no_grad():
        assert relative_error(model(images), exact(images.double())) > 1e-4
    assert optimize(model)._verified < 1e-4
