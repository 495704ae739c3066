"""People set PyTorch's default device or dtype for the whole process before they optimise a model."""

from contextlib import contextmanager

import pytest
import torch
from checks import one_torch_thread
from models import ODD_SQUARE, SMALL, randomise
from official.model import Official

from effv2_kernels import optimize


@contextmanager
def default_device(name):
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def default_dtype(dtype):
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(usual)


DEFAULTS = {
    "meta": lambda: default_device("meta"),
    "within meta": lambda: torch.device("meta"),
    "cuda": lambda: default_device("cuda"),
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
}


def build(origin, generator):
    if origin == "timm":
        module = pytest.importorskip("timm.models.efficientformer_v2")
        sizes = {"depths": (1, 1, 1, 1), "embed_dims": (16, 24, 40, 56), "num_vit": 1, "img_size": 64}
        return randomise(module.EfficientFormerV2(**sizes), generator)
    if origin == "official":
        return randomise(Official(ODD_SQUARE[0], resolution=64), generator)
    if origin == "backbone":
        return randomise(Official(ODD_SQUARE[0], resolution=64, fork_feat=True, dense=True), generator)
    return SMALL[0].build(generator)


@pytest.mark.situation("set the default device or dtype before `optimize`", "works")
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("origin", ["timm", "official", "backbone", "own"])
@pytest.mark.parametrize("default", DEFAULTS)
def test_defaults_make_no_difference(origin, default, strict, generator):
    model = build(origin, generator)
    if not strict:  # the parts, one after another
        model = torch.nn.Sequential(*(model.network if hasattr(model, "network") else model.stages)).eval()
    with one_torch_thread():
        expected = optimize(model, strict=strict)
        with DEFAULTS[default]():
            found = optimize(model, strict=strict)
        for (name, value), other in zip(
            found.state_dict().items(), expected.state_dict().values(), strict=True
        ):
            assert value.device.type == "cpu", name
            assert torch.equal(value, other), name
        errors = [
            [part._verified for part in m.modules() if hasattr(part, "choice")] for m in (found, expected)
        ]
        assert errors[0] == errors[1]
        assert all(error < 1e-5 for error in errors[0])
