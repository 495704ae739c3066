"""People do what an error says: it has to lead somewhere."""

import pytest
import torch
from checks import one_torch_thread
from models import ODD_SQUARE, SMALL, randomise, relative_error
from official.model import Official
from torch import nn

from effv2_kernels import blocks, cpu, optimize
from effv2_kernels.errors import ModelError, ResolutionError

SIZES = {"depths": (1, 1, 1, 1), "embed_dims": (16, 24, 40, 56), "num_vit": 1, "img_size": 64}


@pytest.fixture(autouse=True)
def one_thread():
    with one_torch_thread():
        yield


def timm_model(generator, **options):
    timm = pytest.importorskip("timm.models.efficientformer_v2")
    return randomise(timm.EfficientFormerV2(**(SIZES | options)), generator)


@pytest.mark.situation(
    "load weights into a model that has run before", "refused: call `model.train(); model.eval()`"
)
def test_biases_that_were_gathered_before_the_weights_were_loaded(generator):
    images = torch.randn(1, 3, 64, 64, generator=generator)
    for make in (
        lambda: timm_model(generator),
        lambda: randomise(Official(ODD_SQUARE[0], resolution=64), generator),
    ):
        model, other = make(), make()
        with torch.no_grad():
            model(images)
        model.load_state_dict(other.state_dict())
        with pytest.raises(
            ModelError, match=r"outdated copy of its attention bias.*call model.train\(\); model.eval\(\)\.$"
        ):
            optimize(model)
        model.train()  # what the message says
        model.eval()
        fast = optimize(model)
        with torch.no_grad():
            assert relative_error(fast(images), model(images)) < 1e-5


@pytest.mark.situation(
    "make timm's model with `global_pool=''`", "refused: use `features_only=True`, or `forward_features`"
)
def test_no_pooling(generator):
    timm = pytest.importorskip("timm")
    with pytest.raises(ModelError) as error:
        optimize(timm_model(generator, global_pool=""))
    assert "global_pool='', expected 'avg'" in str(error.value)
    assert "timm.create_model(..., features_only=True)" in str(error.value)
    assert "global_pool='avg' and call forward_features(x)" in str(error.value)
    options = {"img_size": 32, "pretrained": False}  # both ways that it names
    maps = randomise(timm.create_model("efficientformerv2_s0", features_only=True, **options), generator)
    assert isinstance(optimize(maps)(torch.zeros(1, 3, 32, 32)), list)
    model = timm_model(generator)
    images = torch.randn(1, 3, 64, 64, generator=generator)
    with torch.no_grad():
        assert relative_error(optimize(model).forward_features(images), model.forward_features(images)) < 1e-5


def fuse(model):
    """What torch.nn.utils.fusion is used for: norms folded into convolutions, nothing in their place."""
    for module in [*model.modules()]:
        children = dict(module.named_children())
        pairs = [("conv", "bn")] if {"conv", "bn"} <= {*children} else []
        if isinstance(module, nn.Sequential):
            pairs = [
                (a, b)
                for a, b in zip(children, [*children][1:], strict=False)
                if type(children[b]) is nn.BatchNorm2d
            ]
        for conv, norm in pairs:
            if type(children[conv]) is nn.Conv2d:
                fused = nn.utils.fuse_conv_bn_eval(children[conv], children[norm])
                module._modules[conv], module._modules[norm] = fused, nn.Identity()
    return model


@pytest.mark.situation(
    "fuse convolutions and norms before `optimize`", "refused: give the model as it was before"
)
@pytest.mark.parametrize("origin", ["timm", "official", "own"])
def test_a_model_that_was_fused_already(origin, generator):
    model = {
        "timm": lambda: timm_model(generator),
        "official": lambda: randomise(Official(ODD_SQUARE[0], resolution=64), generator),
        "own": lambda: SMALL[0].build(generator),
    }[origin]()
    with pytest.raises(
        ModelError,
        match=r"\(Identity\) stands where an nn.BatchNorm2d belongs.*fused already; give the model as it was",
    ):
        optimize(fuse(model))


@pytest.mark.parametrize("strict", [True, False])
def test_a_model_whose_norms_were_taken_out(generator, strict):
    """Detectors that fuse delete the norms."""
    model = fuse(timm_model(generator))
    for module in [*model.modules()]:
        if isinstance(module._modules.get("bn"), nn.Identity):
            del module.bn
    with pytest.raises(ModelError, match=r"has no submodule 'bn'.*fused already"):
        optimize(model, strict=strict)


@pytest.mark.situation(
    "call a model with images of another size",
    "refused: it names the sizes, and how to make a model of another",
)
def test_a_size_is_refused_with_advice_that_the_class_takes(generator):
    images = torch.randn(1, 3, 96, 128, generator=generator)
    wide = torch.randn(1, 3, 96, 96, generator=generator)

    def message(fast, x):
        with pytest.raises(ResolutionError, match="fit inputs of") as error:
            fast(x)
        return str(error.value)

    said = message(optimize(timm_model(generator)), images)
    assert said.endswith("Resize it, or make the model with timm.create_model(..., img_size=(96, 128)).")
    assert optimize(timm_model(generator, img_size=(96, 128)))(images).shape == (1, 1000)

    fast = optimize(randomise(Official(ODD_SQUARE[0], resolution=64), generator))
    said = message(fast, wide)
    assert said.endswith("Resize it, or make the model with EfficientFormerV2(..., resolution=96).")
    assert message(fast, images).endswith("Resize it (the official classifier takes square images only).")
    assert optimize(randomise(Official(ODD_SQUARE[0], resolution=96), generator))(wide).shape == (1, 1000)

    model = SMALL[0].build(generator)
    said = message(optimize(model), images)
    assert said.endswith("or make the model with effv2_kernels.create_model(..., img_size=(96, 128)).")

    part = optimize(model.stages[2].blocks[1], strict=False)
    said = message(part, torch.randn(1, 40, 9, 9, generator=generator))
    assert said.endswith("Resize it.")
    (block,) = [b for b in part.network.blocks if isinstance(b, blocks.Attention)]
    alone = cpu.Engine(blocks.Network((block,), ("",)))
    with pytest.raises(ResolutionError, match=r"Resize it\.$"):
        alone.run(torch.randn(1, 40, 9, 9, generator=generator))
