"""Small models of each origin, and copies of their files with some passages replaced, as people edit them."""

import sys
import types
from pathlib import Path

import official.model
import pytest
import torch
from models import ODD_SQUARE, TINY, randomise, relative_error

from effv2_kernels import optimize
from effv2_kernels.errors import ModelError
from effv2_kernels.reference import EfficientFormerV2

TIMM_SIZES = {
    "depths": (1, 1, 2, 2),
    "embed_dims": (16, 24, 40, 56),
    "mlp_ratios": 2.0,
    "num_vit": 1,
    "img_size": 64,
    "num_classes": 5,
}


@pytest.fixture(params=["fresh", "random"])
def weights(request, generator):
    """What to do with a new model: leave its weights at their initial values, or give it random ones."""

    def prepare(model):
        if request.param == "random":
            randomise(model, generator)
        model.eval()
        return model

    return prepare


def timm_class():
    return pytest.importorskip("timm.models.efficientformer_v2").EfficientFormerV2


def official_model(module=official.model, **options):
    return module.Official(ODD_SQUARE[0], resolution=64, num_classes=5, **options)


def own_model(cls=EfficientFormerV2):
    return cls(TINY.architecture, img_size=32, num_classes=5)


def executed(source, edits):
    """A module of this source, with some passages replaced by others."""
    for old, new in edits:
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    module = types.ModuleType("someones_copy")
    exec(compile(source, "someones_copy.py", "exec"), module.__dict__)
    return module


def official_copy(*edits):
    return executed(Path(official.model.__file__).read_text(), edits)


def timm_copy(*edits):
    timm_class()
    source = Path(sys.modules["timm.models.efficientformer_v2"].__file__).read_text()
    source = source[: source.index("def _cfg(")].replace("from ._", "from timm.models._")
    return executed(source, edits)


def assert_refused(model, message):
    with pytest.raises(ModelError, match=message):
        optimize(model)


def assert_same(model, images):
    fast = optimize(model)
    with torch.no_grad():
        expected, found = model(images), fast(images)
    assert type(found) is type(expected)
    pairs = zip(found, expected, strict=True) if isinstance(found, list) else [(found, expected)]
    assert all(relative_error(y, e) < 1e-5 for y, e in pairs)
    assert fast._verified < 1e-5


# Leaves out the attention bias in front of the first talking head.
BIAS = ("self.talking_head1(logits + self.bias_for(logits))", "self.talking_head1(logits)")
