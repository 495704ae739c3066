"""EfficientFormerV2 as it trains: drop-path, both classifiers, initialisation; and optimised afterwards."""

import copy

import pytest
import torch
from checks import NETWORK_BOUND, assert_close, one_torch_thread, seeded
from models import SMALL, randomise

import effv2_kernels
from effv2_kernels.errors import ModelError
from effv2_kernels.families.efficientformer_v2 import VARIANTS, Architecture, EfficientFormerV2
from effv2_kernels.families.efficientformer_v2.layers import DropPath

timm = pytest.importorskip("timm")

TINY = Architecture((8, 8, 16, 16), (1, 1, 2, 1), 2, (1, 1))


def rates(model):
    return [m.drop_prob for m in model.modules() if hasattr(m, "drop_prob")]


@pytest.mark.parametrize("name", VARIANTS)
def test_drop_path_rates_are_those_of_timm(name):
    with torch.device("meta"):
        ours = EfficientFormerV2(VARIANTS[name], drop_path_rate=0.3)
        theirs = timm.create_model(name, drop_path_rate=0.3)
    assert len(rates(ours)) > 10
    assert rates(ours) == pytest.approx(rates(theirs), abs=1e-7)
    assert ours.state_dict().keys() == theirs.state_dict().keys()


def test_the_published_rates_are_no_default():
    assert not rates(EfficientFormerV2(VARIANTS["efficientformerv2_s2"], img_size=32))
    with torch.device("meta"):
        model = effv2_kernels.create_model("efficientformerv2_s0", drop_path_rate=0.1)
    assert max(rates(model)) == pytest.approx(0.1)


def test_drop_path_drops_whole_images_and_keeps_the_mean():
    drop = DropPath(0.25)
    x = torch.randn(4000, 2, 1, 3, generator=seeded(1))
    torch.manual_seed(seeded(2).initial_seed())
    y = drop(x)
    kept = (y != 0).all(dim=(1, 2, 3))
    assert torch.equal(y[~kept], torch.zeros_like(y[~kept]))
    torch.testing.assert_close(y[kept], x[kept] / 0.75)
    assert float(kept.float().mean()) == pytest.approx(0.75, abs=5 * (0.25 * 0.75 / 4000) ** 0.5)
    assert drop.eval()(x) is x


@pytest.mark.parametrize("rate", [-0.1, 1.0, 2])
def test_a_rate_that_is_none(rate):
    with pytest.raises(ModelError, match="at least 0 and below 1"):
        EfficientFormerV2(TINY, drop_path_rate=rate)


def test_mobilenet_refuses_drop_path():
    with pytest.raises(ModelError, match="mobilenetv2_100 is trained without drop-path"):
        effv2_kernels.create_model("mobilenetv2_100", drop_path_rate=0.1)


def test_a_trained_model_with_drop_path_optimises_and_agrees():
    """In eval mode its drop-path is nothing; in training mode it is refused."""
    torch.manual_seed(seeded(3).initial_seed())
    model = EfficientFormerV2(TINY, img_size=32, num_classes=7, drop_path_rate=0.5)
    model.set_distilled_training()
    randomise(model, seeded(3))
    x = torch.randn(3, 3, 32, 32, generator=seeded(4))
    with one_torch_thread(), torch.no_grad():
        fast = effv2_kernels.optimize(model)
        assert_close(fast(x), copy.deepcopy(model).double()(x.double()), NETWORK_BOUND)
    with pytest.raises(ModelError, match="training mode"):
        effv2_kernels.optimize(copy.deepcopy(model).train())
    # One branch alone in training mode: still no network that can be frozen.
    part = copy.deepcopy(model)
    part.stages[3].blocks[0].drop_path2.train()
    with pytest.raises(ModelError, match=r"stages\.3\.blocks\.0\.drop_path2"):
        effv2_kernels.optimize(part)


@pytest.mark.parametrize("name", ["drop_path1", "drop_path2"])
def test_something_else_in_the_place_of_drop_path_is_refused(name):
    model = EfficientFormerV2(TINY, img_size=32, num_classes=7).eval()
    setattr(model.stages[3].blocks[0], name, torch.nn.ReLU().eval())
    with pytest.raises(ModelError, match=rf"stages\.3\.blocks\.0\.{name}.*nothing that changes"):
        effv2_kernels.optimize(model)


def test_both_classifiers_in_distilled_training_as_timm():
    """The same logits, the same gradients: timm's model with the same weights is the oracle."""
    theirs = timm.create_model("efficientformerv2_s0", img_size=32, num_classes=5)
    randomise(theirs, seeded(5))
    ours = EfficientFormerV2(VARIANTS["efficientformerv2_s0"], img_size=32, num_classes=5)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 32, 32, generator=seeded(6), dtype=torch.float64)
    found = {}
    with one_torch_thread():
        for name, model in (("ours", ours.double()), ("theirs", theirs.double())):
            model.train()
            model.set_distilled_training(True)
            logits, distilled = model(x)
            (logits.square().sum() + 2 * distilled.sum()).backward()
            found[name] = (logits, distilled, {k: p.grad for k, p in model.named_parameters()})
            model.set_distilled_training(False)
            assert isinstance(model(x), torch.Tensor)
            model.eval()
            model.set_distilled_training(True)
            assert isinstance(model(x), torch.Tensor)
    for a, b in zip(found["ours"][:2], found["theirs"][:2], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    assert found["ours"][2].keys() == found["theirs"][2].keys()
    for name, gradient in found["ours"][2].items():
        torch.testing.assert_close(gradient, found["theirs"][2][name], rtol=1e-6, atol=1e-8, msg=name)


@pytest.mark.parametrize("options", [{"distillation": False}, {"num_classes": 0}, {"features_only": True}])
def test_distillation_needs_its_classifier(options):
    with pytest.raises(ModelError, match="head_dist"):
        EfficientFormerV2(TINY, img_size=32, **options).set_distilled_training()


def test_initialisation_is_that_of_timm():
    """What is constant is equal; what is random has the same deviation."""
    torch.manual_seed(seeded(7).initial_seed())
    ours = EfficientFormerV2(VARIANTS["efficientformerv2_s0"], img_size=64).state_dict()
    theirs = timm.create_model("efficientformerv2_s0", img_size=64).state_dict()
    for name, value in theirs.items():
        if not value.is_floating_point() or value.std() == 0:
            assert torch.equal(ours[name], value), name
        elif value.numel() > 1000:
            assert float(ours[name].std()) == pytest.approx(float(value.std()), rel=0.15), name
    for name in ("head.weight", "head_dist.weight"):
        assert float(ours[name].std()) == pytest.approx(0.02, rel=0.01)


def test_new_classifiers():
    model = SMALL[0].build(seeded(8)).double()
    model.reset_classifier(4)
    assert model.head.out_features == model.head_dist.out_features == model.num_classes == 4
    assert model.head.weight.dtype == torch.float64
    with one_torch_thread():
        assert model(SMALL[0].images(seeded(9), 2).double()).shape == (2, 4)


def test_what_has_no_weight_decay_is_what_timm_says():
    with torch.device("meta"):
        ours = EfficientFormerV2(VARIANTS["efficientformerv2_s0"])
        theirs = timm.create_model("efficientformerv2_s0")
    assert ours.no_weight_decay() == theirs.no_weight_decay() != set()
