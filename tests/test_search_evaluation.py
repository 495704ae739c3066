"""How accurate a subnet is: from a supernet's weights, BatchNorm of its own, and images in memory."""

import digit_supernet
import pytest
import torch
from digit_supernet import DIGITS, evaluator
from safetensors.torch import save_file

from effv2_kernels.errors import CheckpointError, InputError, SearchError
from effv2_kernels.search import evaluation
from effv2_kernels.search.evaluation import Remembered, SupernetEvaluator
from effv2_kernels.search.images import TensorImages, tensor_images
from effv2_kernels.search.supernet import Supernet

digits, one_thread = digit_supernet.digits, digit_supernet.one_thread  # fixtures


def test_evaluating_leaves_the_supernet_and_depends_on_no_order(digits):
    one = evaluator(digits)
    before = {name: t.clone() for name, t in one.supernet.state_dict().items()}
    subnets = [DIGITS.largest(), DIGITS.smallest()]
    found = [one.accuracy(subnet) for subnet in subnets]
    assert [one.accuracy(subnet) for subnet in reversed(subnets)] == found[::-1]
    assert len(set(found)) == 2
    for name, t in one.supernet.state_dict().items():
        assert torch.equal(t, before[name])
    assert evaluator(digits).identity == one.identity
    name = next(n for n, t in before.items() if t.is_floating_point())
    one.supernet.state_dict()[name].view(-1)[0] += 1
    assert SupernetEvaluator(one.supernet, one.images).identity != one.identity


def test_accuracies_of_another_device_have_another_identity(digits, tmp_path, monkeypatch):
    """Of the same weights: some images are of other classes there. On CPUs it is as it always was."""
    one = evaluator(digits)
    digest = evaluation._digest(one.supernet)
    assert one.identity == f"supernet {digest} on {one.images.identity}"
    monkeypatch.setattr(evaluation, "_digest", lambda supernet: digest)
    Remembered(one, tmp_path / "shared.jsonl").close()
    others = [SupernetEvaluator(one.supernet.to(there), one.images) for there in (torch.float64, "meta")]
    assert [other.identity.removeprefix(one.identity) for other in others] == [
        ", by cpu in torch.float64",
        ", by meta in torch.float64",
    ]
    for other in others:
        with pytest.raises(SearchError, match=r"was written with evaluator .*choose another file of"):
            Remembered(other, tmp_path / "shared.jsonl")


def test_accuracy_is_of_recalibrated_statistics(digits):
    """Those of the supernet are of other subnets, too, and here of none."""
    one = evaluator(digits)
    accuracy = one.accuracy(DIGITS.largest())
    for module in one.supernet.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.fill_(3.0)
    assert one.accuracy(DIGITS.largest()) == accuracy


class NoImages:
    """Of one kind or the other."""

    identity = "none"

    def __init__(self, training, held_out):
        self.calibration, self.held_out = (lambda: iter(training)), (lambda: iter(held_out))


def test_no_images():
    supernet, x = Supernet(DIGITS, num_classes=3).eval(), torch.randn(4, 1, 32, 32)
    with pytest.raises(InputError, match="there are no images to make BatchNorm statistics from"):
        SupernetEvaluator(supernet, NoImages([], [(x, torch.zeros(4))])).accuracy(DIGITS.smallest())
    with pytest.raises(SearchError, match="there are no held-out images"):
        SupernetEvaluator(supernet, NoImages([x], [])).accuracy(DIGITS.smallest())


def random_images(count=7, **changes):
    g = torch.Generator().manual_seed(0)
    tensors = {
        "training": torch.randn(count, 1, 32, 32, generator=g),
        "images": torch.randn(count, 1, 32, 32, generator=g),
        "classes": torch.arange(count) % 3,
    }
    return tensors | changes


def test_images_in_memory():
    images = TensorImages(**random_images(7), batch=3)
    assert [len(batch) for batch in images.calibration()] == [3, 2, 2]  # none of a single image
    assert torch.equal(torch.cat(list(images.calibration())), images.training)
    assert [(len(x), y.tolist()) for x, y in images.held_out()] == [(3, [0, 1, 2]), (3, [0, 1, 2]), (1, [0])]
    assert images.identity == TensorImages(**random_images(7), batch=3).identity
    others = [TensorImages(**random_images(7), batch=2)]
    others += [
        TensorImages(**random_images(7, **{name: t.flip(0)}), batch=3) for name, t in random_images(7).items()
    ]
    assert len({images.identity, *(other.identity for other in others)}) == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training": torch.zeros(2, 1, 31, 32)}, "must be .* of one size"),
        ({"images": torch.zeros(7, 32, 32)}, "must be .* of one size"),
        ({"classes": torch.zeros(6, dtype=torch.int64)}, "need as many classes"),
        ({"classes": torch.zeros(7)}, "int64; got torch.float32"),
        ({"training": torch.zeros(0, 1, 32, 32)}, "got 0 and 7"),
        ({"classes": torch.full((7,), 10)}, "classes 10 to 10, and the supernet takes"),
        ({"classes": torch.full((7,), -1)}, "classes -1 to -1"),
        ({"classes": None}, "has no tensor classes, but images, training"),
    ],
)
def test_images_that_do_not_fit(changes, message, tmp_path):
    tensors = {name: t for name, t in random_images(7, **changes).items() if t is not None}
    save_file(tensors, tmp_path / "images.safetensors")
    with pytest.raises(InputError, match=message):
        tensor_images(tmp_path / "images.safetensors", img_size=(32, 32), in_channels=1, classes=10)


def test_images_of_another_size(tmp_path):
    save_file(random_images(), tmp_path / "images.safetensors")
    with pytest.raises(InputError, match=r"has images \(1, 32, 32\) .* takes images \(3, 32, 32\)"):
        tensor_images(tmp_path / "images.safetensors", img_size=(32, 32), in_channels=3, classes=10)
    with pytest.raises(CheckpointError, match="is not a file"):
        tensor_images(tmp_path / "none.safetensors", img_size=(32, 32), in_channels=3, classes=10)
