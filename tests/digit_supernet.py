"""A small supernet that was trained for a few steps on scikit-learn's digits: what searches on it need."""

import contextlib

import pytest
import torch
import torch.nn.functional as F
from checks import one_torch_thread
from safetensors.torch import save_file
from searches import table

from effv2_kernels.search.evaluation import SupernetEvaluator
from effv2_kernels.search.images import tensor_images
from effv2_kernels.search.space import SearchSpace, StageChoices
from effv2_kernels.search.supernet import Supernet, supernet_file
from effv2_kernels.search.supernet.sandwich import Sandwich

DIGITS = SearchSpace(
    (
        StageChoices((8, 16), (1,), (1, 2)),
        StageChoices((8, 16), (1,), (2,)),
        StageChoices((16, 24), (1, 2), (1, 2), (0, 1)),
        StageChoices((16, 24), (1,), (2,), (0, 1)),
    ),
    img_size=(32, 32),
    in_channels=1,
)


@pytest.fixture(autouse=True)
def one_thread():
    with one_torch_thread():
        yield


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The folder of a supernet that was trained for a few steps, digits, and a table that is made up."""
    split = pytest.importorskip("effv2_kernels.data").digits_split
    pytest.importorskip("sklearn")
    folder = tmp_path_factory.mktemp("digits")
    with one_torch_thread():
        (training, classes), (test, test_classes) = (
            (F.interpolate(images, size=(32, 32), mode="area"), labels) for images, labels in split()
        )
        torch.manual_seed(0)
        supernet = Supernet(DIGITS, num_classes=10, layer_scale_init=0.5).train()
        optimiser = torch.optim.AdamW(supernet.parameters(), lr=4e-3)
        rule = Sandwich(F.cross_entropy)
        for begin in range(0, 768, 64):
            optimiser.zero_grad()
            part = slice(begin, begin + 64)
            rule.backward(supernet, training[part], classes[part], contextlib.nullcontext, lambda loss: loss)
            optimiser.step()
        supernet_file.save(supernet, folder / "supernet.safetensors")
    tensors = {"training": training[:256], "images": test[:300], "classes": test_classes[:300]}
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / "digits.safetensors")
    table(0, DIGITS, 10).save(folder / "here.json")
    table(1, DIGITS, 10).save(folder / "phone.json")
    return folder


def evaluator(digits):
    images = tensor_images(digits / "digits.safetensors", img_size=(32, 32), in_channels=1, classes=10)
    return SupernetEvaluator(supernet_file.load(digits / "supernet.safetensors"), images)
