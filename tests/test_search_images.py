"""Images of a folder, as searches ask for them: the same whenever they do, and those not trained on."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

pytest.importorskip("timm")

from training import PLAIN, write_digits

from effv2_kernels.errors import InputError
from effv2_kernels.search import dataset_images
from effv2_kernels.search.dataset_images import DatasetImages
from effv2_kernels.search.evaluation import SupernetEvaluator
from effv2_kernels.search.images import TensorImages
from effv2_kernels.search.space import SearchSpace
from effv2_kernels.search.supernet import Supernet, supernet_file
from effv2_kernels.train import open_data

RECIPE = replace(PLAIN, batch=10)


def images_of(digits, group, recipe=RECIPE, hold_out=0.5, **options):
    data = open_data(digits, hold_out=hold_out)
    return DatasetImages(data, recipe, group, channels=3, workers=0, **options)


def test_the_same_images_every_time(digits, group):
    one = images_of(digits, group, calibration=12, most=25)
    assert [len(x) for x in one.calibration()] == [6, 6]
    assert [len(x) for x, _ in one.held_out()] == [10, 10, 5]
    again = images_of(digits, group, calibration=12, most=25)
    assert again.identity == one.identity
    for a, b in zip([*one.held_out(), *one.held_out()], [*again.held_out(), *again.held_out()], strict=True):
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])
    # Of all classes, though folders are read class by class.
    assert len({int(y) for _, classes in one.held_out() for y in classes}) > 6
    whole = images_of(digits, group, calibration=None)
    assert sum(map(len, whole.calibration())) == sum(len(x) for x, _ in whole.held_out()) == 32


def test_batches_for_statistics_are_of_nearly_one_size(digits, group):
    """As those of images in memory: of a last one of a single image there may be no statistics."""
    whole = torch.cat(list(images_of(digits, group, calibration=21).calibration()))
    for batch, sizes in ((20, [11, 10]), (8, [7, 7, 7]), (6, [6, 5, 5, 5]), (21, [21]), (30, [21])):
        images = images_of(digits, group, replace(RECIPE, batch=batch), calibration=21)
        for _ in range(2):
            assert [len(x) for x in images.calibration()] == sizes
        assert torch.equal(torch.cat(list(images.calibration())), whole)
        in_memory = TensorImages(whole, whole, torch.zeros(21, dtype=torch.int64), batch)
        assert [len(x) for x in in_memory.calibration()] == sizes
        # Accuracies that were made of other batches are not taken for these.
        assert ("nearly" in images.identity) == (batch in (20, 8, 6))
    odd = images_of(digits, group, replace(RECIPE, batch=16), calibration=17)
    space = SearchSpace.from_json(
        json.dumps({"img_size": [32, 32], "stages": [{"widths": [8], "depths": [1], "ratios": [1]}] * 4})
    )
    evaluator = SupernetEvaluator(Supernet(space, num_classes=10).eval(), odd)
    evaluator.calibrated(space.largest())  # whose last map is 1x1


def test_other_images_have_another_identity(digits, group):
    made = [
        images_of(digits, group),
        images_of(digits, group, calibration=3),
        images_of(digits, group, most=3),
        images_of(digits, group, hold_out=0.25),
        images_of(digits, group, hold_out=0.0),
        images_of(digits, group, replace(RECIPE, crop=0.5)),
        images_of(digits, group, replace(RECIPE, batch=20)),
    ]
    assert len({one.identity for one in made}) == len(made)


def test_images_that_memory_does_not_hold_are_read_again(digits, group, monkeypatch):
    kept = list(images_of(digits, group).held_out())
    monkeypatch.setattr(dataset_images, "_KEPT_BYTES", 0)
    images = images_of(digits, group)
    held_out = images.held_out()
    for _ in range(2):
        assert all(torch.equal(a[0], b[0]) for a, b in zip(kept, held_out, strict=True))
    assert not any("_whole" in part.__dict__ for part in images._parts)


def test_a_supernet_says_what_it_was_trained_on(digits, group, tmp_path):
    stage = {"widths": [8], "depths": [1], "ratios": [1]}
    space = SearchSpace.from_json(json.dumps({"img_size": [32, 32], "in_channels": 3, "stages": [stage] * 4}))
    supernet = Supernet(space, num_classes=10)
    told = {"hold_out": 0.25, "crop": 0.9, "interpolation": "bilinear"}
    told["trained_on"] = open_data(digits, hold_out=0.25).train.digest()
    supernet_file.save(supernet, tmp_path / "told.safetensors", images=told)
    supernet_file.save(supernet, tmp_path / "untold.safetensors")

    def of(name, root=digits):
        return DatasetImages.of_supernet(tmp_path / name, supernet, root, group, batch=10, workers=0)

    recipe = replace(RECIPE, crop=0.9, interpolation="bilinear")
    assert of("told.safetensors").identity == images_of(digits, group, recipe, hold_out=0.25).identity
    # Fine-tuning is told how they were cut, and trains on those that were held out as well.
    for name, (crop, interpolation) in {
        "told.safetensors": (0.9, "bilinear"),
        "untold.safetensors": (0.95, "bicubic"),
    }.items():
        found = of(name)
        assert (found.recipe.crop, found.recipe.interpolation) == (crop, interpolation)
        assert found.trainable == 64
    # One that says nothing, of elsewhere, is searched on the images to evaluate on.
    validation = [x for x, _ in of("untold.safetensors").held_out()]
    assert sum(map(len, validation)) == 20
    few = write_digits(tmp_path / "few", classes=3)
    with pytest.raises(InputError, match="has 3 classes, but 10 were asked for"):
        of("told.safetensors", few)


def test_the_same_images_elsewhere(digits, group, tmp_path, monkeypatch):
    """Where they lie, and how the way there is typed, is no difference; another image is."""
    shutil.copytree(digits, tmp_path / "copy")
    identity = images_of(digits, group).identity
    monkeypatch.chdir(tmp_path)
    assert images_of("./copy", group).identity == images_of("copy", group).identity == identity
    (file,) = list((tmp_path / "copy" / "train" / "3").iterdir())[:1]
    file.rename(file.with_name("another.png"))
    assert images_of("copy", group).identity != identity


def test_images_that_a_supernet_may_have_seen(digits, group, tmp_path):
    """What is held out follows from which images there are: one more, and others are."""
    more = tmp_path / "more"
    shutil.copytree(digits, more)
    shutil.copy(next((more / "train" / "3").iterdir()), more / "train" / "3" / "one_more.png")
    stage = {"widths": [8], "depths": [1], "ratios": [1]}
    text = json.dumps({"img_size": [32, 32], "in_channels": 3, "stages": [stage] * 4})
    supernet = Supernet(SearchSpace.from_json(text), num_classes=10)
    file = tmp_path / "supernet.safetensors"
    told = {"hold_out": 0.25, "trained_on": open_data(digits, hold_out=0.25).train.digest()}
    supernet_file.save(supernet, file, images=told)
    DatasetImages.of_supernet(file, supernet, digits, group, workers=0)
    with pytest.raises(
        InputError, match="has other training images than those that the supernet was trained"
    ):
        DatasetImages.of_supernet(file, supernet, more, group, workers=0)


def test_images_without_numbers(digits, group, monkeypatch):
    data = replace(open_data(digits), train=object())
    with pytest.raises(InputError, match="is read in order: give one whose images have numbers"):
        DatasetImages(data, RECIPE, group, channels=3)
