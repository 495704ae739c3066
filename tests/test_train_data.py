"""Images for training: folders and torchvision's files, what they are refused for, and their order."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("timm")
Image = pytest.importorskip("PIL.Image")

from timm.data import auto_augment  # noqa: E402
from training import PLAIN, RECIPE, SIZE, write_digits  # noqa: E402

from effv2_kernels.errors import InputError  # noqa: E402
from effv2_kernels.train import open_data, train_loader, validation_loader  # noqa: E402
from effv2_kernels.train.data import batches, set_epoch  # noqa: E402
from effv2_kernels.train.evaluation import own_share  # noqa: E402
from effv2_kernels.train.trainer import epoch_seed  # noqa: E402


def epoch(loader, number, seed=0):
    set_epoch(loader, epoch_seed(seed, number))
    from timm.utils import random_seed

    random_seed(epoch_seed(seed, number), 0)
    return [tensor for batch in batches(loader) for tensor in batch]


def test_folders(digits, group):
    data = open_data(digits)
    assert (data.classes, data.names) == (10, tuple("0123456789"))
    assert (len(data.train), len(data.validation)) == (64, 20)
    for loader in (
        train_loader(data, RECIPE, group, workers=0),
        validation_loader(data, RECIPE, group, workers=0),
    ):
        images, targets = next(batches(loader))
        assert images.shape == (16, 3, SIZE, SIZE)
        assert images.dtype == torch.float32
        assert targets.dtype == torch.int64
        assert bool(images.isfinite().all())
    with pytest.raises(InputError, match="has 10 classes, but 12 were asked for"):
        open_data(digits, classes=12)


def test_the_strongest_posterizing_leaves_black(digits, group):
    """The paper's policy comes to it in one image of a thousand; newer versions of Pillow refuse it."""
    data = open_data(digits)
    train_loader(data, replace(RECIPE, auto_augment="rand-m10-inc1"), group, workers=0)
    (augment,) = [
        part for part in data.train.transform.transforms if isinstance(part, auto_augment.RandAugment)
    ]
    (posterize,) = [operation for operation in augment.ops if operation.name == "PosterizeIncreasing"]
    posterize.prob = 1.0
    assert posterize(Image.new("RGB", (4, 4), "white")).getextrema() == ((0, 0),) * 3
    posterize.magnitude = 5
    assert posterize(Image.new("RGB", (4, 4), "white")).getextrema() == ((192, 192),) * 3
    assert auto_augment.NAME_TO_OP["PosterizeIncreasing"] is auto_augment.posterize  # timm's own stays


def test_what_is_evaluated_is_every_image_once_and_normalised(digits, group):
    data = open_data(digits)
    loader = validation_loader(data, replace(PLAIN, crop=1.0), group, workers=0)
    found = list(own_share(loader, group))
    assert sum(len(images) for images, _ in found) == 20
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with Image.open(data.validation.name(3).strip("'")) as picture:
        pixels = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1).float() / 255
    torch.testing.assert_close(found[0][0][3], (pixels - mean) / std, rtol=1e-5, atol=1e-5)


def test_a_second_process_takes_the_other_images(digits, group):
    """Of 20 images over 3 processes, two have 7 and one has 6, though the sampler gives each 7."""
    data = open_data(digits)
    shares = []
    for rank in range(3):
        loader = validation_loader(data, PLAIN, group, workers=0, batch=4)
        loader.sampler.num_replicas, loader.sampler.rank = 3, rank
        loader.sampler.num_samples, loader.sampler.total_size = 7, 21
        shares.append(sum(len(t) for _, t in own_share(loader, replace(group, rank=rank, count=3))))
    assert shares == [7, 7, 6]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_follows_from_its_number_and_the_seed(digits, group, workers):
    data = open_data(digits)
    loader = train_loader(data, RECIPE, group, workers=workers)
    first, second = epoch(loader, 0), epoch(loader, 1)
    again = epoch(train_loader(data, RECIPE, group, workers=workers), 1)
    other = epoch(loader, 1, seed=7)
    assert all(torch.equal(a, b) for a, b in zip(second, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first[::2], second[::2], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(second[::2], other[::2], strict=True))


def test_seeds_of_epochs_do_not_meet():
    """Neither seed + epoch nor anything else that makes epoch 1 of seed 0 that of epoch 0 of seed 1."""
    assert len({epoch_seed(seed, number) for seed in range(30) for number in range(30)}) == 900


def test_repeated_augmentation(digits, group):
    data = open_data(digits)
    loader = train_loader(data, replace(PLAIN, repeats=3), group, workers=0)
    found = torch.stack([image for images in epoch(loader, 0)[::2] for image in images]).flatten(1)
    distinct, counts = found.unique(dim=0, return_counts=True)
    assert len(distinct) <= 24  # equal digits may be equal pictures
    assert int(counts.max()) >= 3


@pytest.mark.parametrize(("mode", "channels"), [("L", 3), ("RGBA", 3), ("P", 3), ("CMYK", 3), ("RGB", 1)])
def test_pictures_of_any_mode_are_converted(tmp_path, group, mode, channels):
    root = write_digits(tmp_path, 16, 4)
    for file in root.rglob("*.png"):
        with Image.open(file) as picture:
            picture.load()
        picture.convert(mode).save(file, format="TIFF")  # timm goes by the name, Pillow by what is inside
    data = open_data(root, channels=channels)
    images, _ = next(batches(validation_loader(data, PLAIN, group, workers=0, channels=channels)))
    assert images.shape == (4, channels, SIZE, SIZE)


def test_sixteen_bits_are_no_white_picture(tmp_path, group):
    root = write_digits(tmp_path, 16, 4)
    expected = next(batches(validation_loader(open_data(root), PLAIN, group, workers=0)))[0]
    for file in root.rglob("*.png"):
        with Image.open(file) as picture:
            pixels = np.array(picture).astype(np.uint16) * 256
        Image.fromarray(pixels).save(file)
    found = next(batches(validation_loader(open_data(root), PLAIN, group, workers=0)))[0]
    torch.testing.assert_close(found, expected)


def test_a_class_without_images_to_evaluate_does_not_shift_the_others(tmp_path):
    root = write_digits(tmp_path, 64, 40)
    shutil.rmtree(root / "val" / "3")
    data = open_data(root)
    for i in range(len(data.validation)):
        image, target = data.validation[i]
        assert image.size == (SIZE, SIZE)
        assert Path(data.validation.name(i).strip("'")).parent.name == str(target)


def _no_folder(root):
    shutil.rmtree(root)


def _no_split(root):
    shutil.rmtree(root / "val")


def _no_images(root):
    for file in (root / "train").rglob("*.png"):
        file.unlink()


def _no_images_to_evaluate(root):
    for file in (root / "val").rglob("*.png"):
        file.unlink()


def _one_class(root):
    for folder in [*(root / "train").iterdir(), *(root / "val").iterdir()]:
        if folder.name != "3":
            shutil.rmtree(folder)


def _no_class_folders(root):
    for split in ("train", "val"):
        for file in (root / split).rglob("*.png"):
            file.rename(root / split / file.name)


def _unknown_class(root):
    (root / "val" / "3").rename(root / "val" / "three")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_no_folder, "there is no folder '{root}'"),
        (_no_split, "'{root}' has no folder validation/ or val/"),
        (_no_images, "cannot read images for train in '{root}': Found 0 images"),
        (_no_images_to_evaluate, "cannot read images for validation in '{root}': Found 0 images"),
        (_one_class, "'{root}' has one class (3), and there is nothing to tell apart"),
        (_no_class_folders, "'{root}' has one class ("),
        (_unknown_class, "validation has classes that train has not: three."),
    ],
)
def test_folders_that_are_refused(tmp_path, change, words):
    root = write_digits(tmp_path / "digits")
    change(root)
    with pytest.raises(InputError, match=re.escape(words.format(root=root))):
        open_data(root)


def test_a_file_is_no_folder(tmp_path):
    file = tmp_path / "images.zip"
    file.write_bytes(b"PK")
    with pytest.raises(InputError, match="there is no folder"):
        open_data(file)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("damage", ["text", "truncated", "empty", "floats"])
def test_an_image_that_cannot_be_read_is_named(tmp_path, group, workers, damage):
    """timm would warn and take the next one."""
    root = write_digits(tmp_path, 16, 4)
    file = sorted(root.glob("val/*/*.png"))[0]
    whole = file.read_bytes()
    if damage == "floats":
        Image.fromarray(np.ones((9, 9), dtype=np.float32)).save(file, format="TIFF")
    else:
        file.write_bytes({"text": b"no picture", "truncated": whole[: len(whole) // 2], "empty": b""}[damage])
    loader = validation_loader(open_data(root), PLAIN, group, workers=workers)
    with pytest.raises(InputError) as raised:
        list(batches(loader))
    expected = "holds floats" if damage == "floats" else "is no picture that can be read"
    assert str(raised.value).startswith(f"'{file}'")
    assert expected in str(raised.value)
    assert "Traceback" not in str(raised.value)


def test_too_few_images_for_a_batch(tmp_path, group):
    data = open_data(write_digits(tmp_path, 15, 4))
    with pytest.raises(InputError, match="15 images for training do not fill one batch of 16"):
        train_loader(data, PLAIN, group, workers=0)


@pytest.mark.parametrize("workers", [-1, 10**20])
def test_so_many_processes_load_no_images(digits, group, workers):
    data = open_data(digits)
    for make in (train_loader, validation_loader):
        with pytest.raises(InputError, match=f"--workers takes 0, .* to 1024, but got {workers}"):
            make(data, PLAIN, group, workers=workers)


def test_channels_that_no_picture_has(digits):
    with pytest.raises(InputError, match="pictures have 1 or 3 channels, but the model takes 5"):
        open_data(digits, channels=5)


def _idx(array):
    sizes = b"".join(int(n).to_bytes(4, "big") for n in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


def test_a_dataset_of_torchvision(tmp_path, group):
    """The files of Fashion-MNIST, with digits in them: grey pictures, which the model takes as RGB."""
    from sklearn.datasets import load_digits

    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    digits = load_digits()
    pictures = np.kron(digits.images[:40] * 15.9, np.ones((1, 4, 4)))[:, 2:30, 2:30]
    for name, part in (("train", slice(0, 32)), ("t10k", slice(32, 40))):
        (raw / f"{name}-images-idx3-ubyte").write_bytes(_idx(pictures[part]))
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(_idx(digits.target[:40][part]))
    data = open_data(tmp_path, dataset="torch/fashion_mnist")
    assert (data.classes, len(data.train), len(data.validation)) == (10, 32, 8)
    images, targets = next(batches(validation_loader(data, PLAIN, group, workers=0)))
    assert images.shape == (8, 3, SIZE, SIZE)
    assert targets.tolist() == digits.target[32:40].tolist()
    assert "FashionMNIST" in data.train.name(3)


def test_datasets_that_are_not_there(tmp_path):
    with pytest.raises(
        InputError, match=r"cannot read torch/fashion_mnist for train in .*: Dataset not found"
    ):
        open_data(tmp_path, dataset="torch/fashion_mnist")
    with pytest.raises(InputError, match=r"cannot read torch/no_such for train in .*: Unknown torchvision"):
        open_data(tmp_path, dataset="torch/no_such")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("toch/cifar10", " Did you mean 'torch/cifar10'?"),
        ("nosuch/x", ""),
        ("cifar10", " Did you mean 'torch/cifar10'?"),
        ("/torch/cifar10", ""),
    ],
)
def test_a_dataset_that_timm_would_take_for_folders(digits, name, meant):
    said = f"unknown dataset '{name}'.{meant} Those of timm begin with torch/, hfds/, hfids/, tfds/, wds/;"
    with pytest.raises(InputError, match=re.escape(said)):
        open_data(digits, dataset=name)


def test_kinds_of_datasets_are_those_of_timm(monkeypatch, digits):
    """What it knows goes to its readers, and in upper case as well."""
    from timm.data import dataset_factory

    from effv2_kernels.train import data

    def reader(root, reader, **options):
        raise RuntimeError(f"read by {reader}")

    for name in ("ImageDataset", "IterableImageDataset"):
        monkeypatch.setattr(dataset_factory, name, reader)
    for kind in data._KINDS:
        for name in (f"{kind}/Some", f"{kind.upper()}/Some"):
            with pytest.raises(InputError, match=r"read by|Unknown torchvision dataset some"):
                open_data(digits, dataset=name, classes=3)


def pictures(part):
    """Their names, which tell images apart."""
    return [part.name(number) for number in range(len(part))]


def test_what_is_held_out_is_not_trained_on(digits):
    whole, data = open_data(digits), open_data(digits, hold_out=0.25)
    assert (len(data.train), len(data.held_out)) == (48, 16)
    held_out = pictures(data.held_out)
    assert not set(held_out) & set(pictures(data.train))
    assert set(held_out) | set(pictures(data.train)) == set(pictures(whole.train))
    assert pictures(data.validation) == pictures(whole.validation) == pictures(whole.held_out)
    assert pictures(open_data(digits, hold_out=0.25).held_out) == held_out
    # Of many classes: folders are read class by class, and a part of them is of all.
    assert len({data.held_out[number][1] for number in range(16)}) > 5
    # Each image has its own class, whatever part it is in.
    for part in (data.train, data.held_out):
        for number in range(0, len(part), 5):
            assert Path(part.name(number).strip("'")).parent.name == str(part[number][1])


@pytest.mark.parametrize("share", [1.0, 1.5, -0.1, 0.001, float("nan"), float("inf")])
def test_shares_that_leave_nothing(digits, share):
    with pytest.raises(InputError, match=rf"a share of {share} of 64 training images is .* such as 0\.05"):
        open_data(digits, hold_out=share)


def test_images_that_are_read_in_order_have_no_part(digits, monkeypatch):
    from timm.data import IterableImageDataset

    class InOrder(IterableImageDataset):
        def __init__(self):
            pass

    monkeypatch.setattr("effv2_kernels.train.data._opened", lambda *args, **options: InOrder())
    assert open_data(digits, dataset="hfds/some", classes=3).held_out is not None
    with pytest.raises(InputError, match="read in order no part can be held out"):
        open_data(digits, dataset="hfds/some", classes=3, hold_out=0.1)
