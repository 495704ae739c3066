"""Images and their classes: whatever ``timm.data.create_dataset`` reads, checked, and loaded by timm.

timm skips an image that cannot be read; here it is an error that names the file.
"""

from __future__ import annotations

import difflib
import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from PIL import Image
from timm.data import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IterableImageDataset,
    Mixup,
    auto_augment,
    create_dataset,
    create_loader,
    create_transform,
)
from torch import Tensor
from torch.utils.data import Dataset

from effv2_kernels import photo
from effv2_kernels.errors import Effv2Error, InputError, reason
from effv2_kernels.train.distributed import Processes
from effv2_kernels.train.recipe import Recipe

# What timm takes a folder's splits from (timm/data/dataset_factory.py), in its order.
_FOLDERS = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "eval", "evaluation"),
}
# Before the slash of a dataset's name (timm/data/dataset_factory.py, reader_factory.py); timm takes whatever
# else is there for folders.
_KINDS = ("torch", "hfds", "hfids", "tfds", "wds")
_MODES = {1: "L", 3: "RGB"}  # what Pillow calls pictures of so many channels
# Of the order that parts of a dataset are taken in: whoever asks for the same share has the same images.
_ORDER_SEED = 0
_MOST_WORKERS = 1024
_CAUGHT = "Caught InputError in DataLoader worker process"


class Pictures(Dataset[tuple[Any, int]]):
    """A dataset of timm or torchvision whose pictures are brought to the channels of the model.

    indices: which pictures, in which order; None for all. ``transform`` is set by timm's loader. Raises
    InputError, with the name of the file, for what is no picture.
    """

    def __init__(self, base: Any, channels: int, classes: int, indices: Sequence[int] | None = None) -> None:
        self.base = base
        self.channels = channels
        self.mode = _MODES[channels]
        self.classes = classes
        self.indices = range(len(base)) if indices is None else indices
        self.transform: Any = None

    def __len__(self) -> int:
        return len(self.indices)

    def part(self, numbers: Sequence[int]) -> Pictures:
        """Some of these, by their numbers among these, with a transform of their own."""
        indices = [self.indices[number] for number in numbers]
        return Pictures(self.base, self.channels, self.classes, indices)

    def shuffled(self) -> list[int]:
        """The numbers of all of these in a random order that is the same every time."""
        generator = torch.Generator().manual_seed(_ORDER_SEED)
        return cast(list[int], torch.randperm(len(self), generator=generator).tolist())

    def name(self, number: int) -> str:
        """What messages call an image: its file, or its number in a dataset without files."""
        index = self.indices[number]
        if hasattr(self.base, "filename"):
            return f"'{self.base.filename(index, absolute=True)}'"
        return f"image {index} of {type(self.base).__name__}"

    def digest(self) -> str:
        """Another one where the pictures are others by their names, in folders of classes, or in their order.

        Where the dataset lies has no part in it, nor have the bytes of pictures; those of a dataset without
        names count by their numbers.
        """
        named = hasattr(self.base, "filename")
        split = os.path.basename(self.base.reader.root) if named else type(self.base).__name__
        found = hashlib.sha256(f"{split} {len(self.base)} {self.classes}\n".encode())
        for index in self.indices:
            found.update(f"{self.base.filename(index) if named else index}\n".encode())
        return found.hexdigest()[:16]

    def __getitem__(self, number: int) -> tuple[Any, int]:
        try:
            image, target = self._read(self.indices[number])
        except InputError as error:
            raise InputError(f"{self.name(number)}: {error}") from error
        except Exception as error:  # a damaged file makes Pillow raise nearly anything
            raise InputError(
                f"{self.name(number)} is no picture that can be read ({reason(error)}): mend it, or "
                f"take it away."
            ) from error
        if not 0 <= target < self.classes:
            raise InputError(
                f"{self.name(number)} is of class {target}, and there are {self.classes} of them."
            )
        return (image if self.transform is None else self.transform(image)), target

    def _read(self, index: int) -> tuple[Image.Image, int]:
        if not hasattr(self.base, "reader"):  # of torchvision
            image, target = self.base[index]
            return photo.rgb(image, None).convert(self.mode), int(target)
        file, target = self.base.reader[index]
        with file, Image.open(file) as image:
            return photo.rgb(image, image.format).convert(self.mode), int(target)


@dataclass(frozen=True)
class Data:
    """Images of the same classes. names: of the classes, where they have any.

    train: to train on. validation: to evaluate on. held_out: to choose by, which are not trained on: a part
    that was taken away from the training images, else those to evaluate on.
    """

    train: Any
    validation: Any
    classes: int
    names: tuple[str, ...] | None
    held_out: Any


def open_data(
    root: str | os.PathLike[str],
    *,
    dataset: str = "",
    channels: int = 3,
    classes: int | None = None,
    splits: tuple[str, str] = ("train", "validation"),
    hold_out: float = 0.0,
) -> Data:
    """A folder with one folder of images for each class in each split, or another dataset of timm.

    dataset: "" for folders; else as timm names it, "torch/fashion_mnist", "hfds/...", "tfds/..." (the latter,
    read in order, are shuffled by timm). channels: 3 or 1; pictures are converted. classes: how many there
    are, of datasets that do not say. splits: for training and for evaluation. hold_out: the share of the
    training images that are not trained on but chosen by, drawn at random, the same whenever it is asked for.

    Raises InputError for a dataset that timm does not know, where there is no such folder, no image in it,
    one class alone, another class in the second split than in the first, or no part that can be held out.
    """
    if channels not in (1, 3):
        raise InputError(f"pictures have 1 or 3 channels, but the model takes {channels}.")
    given = os.fspath(root)
    if dataset:
        _check_kind(dataset)
    else:
        _check_folders(given, splits)
    mode = _MODES[channels]
    train = _opened(given, dataset, splits[0], mode)
    names = _names(train)
    count = len(names) if names is not None else classes
    if count is None:
        raise InputError(f"{dataset} does not say how many classes it has: give --num-classes.")
    if count < 2:
        raise InputError(
            f"'{given}' has one class ({names[0] if names else count}), and there is nothing to tell apart: "
            f"make one folder for each class in each split."
        )
    if classes is not None and classes != count:
        raise InputError(f"'{given}' has {count} classes, but {classes} were asked for.")
    class_map = None
    if not dataset:
        validation_names = _names(_opened(given, dataset, splits[1], mode)) or ()
        unknown = sorted(set(validation_names) - set(names or ()))
        if unknown:
            raise InputError(
                f"'{given}': {splits[1]} has classes that {splits[0]} has not: {', '.join(unknown[:5])}"
                f"{f' and {len(unknown) - 5} more' if len(unknown) > 5 else ''}."
            )
        # timm numbers the classes of a split by themselves, which a class without images there would shift.
        class_map = {name: i for i, name in enumerate(names or ())}
    validation = _opened(given, dataset, splits[1], mode, class_map=class_map)
    train, validation = (
        part if isinstance(part, IterableImageDataset) else Pictures(part, channels, count)
        for part in (train, validation)
    )
    held_out = validation
    if hold_out:
        train, held_out = _held_out(train, hold_out)
    return Data(train, validation, count, names, held_out)


def _held_out(train: Any, share: float) -> tuple[Pictures, Pictures]:
    if not isinstance(train, Pictures):
        raise InputError("of images that are read in order no part can be held out: give a share of 0.")
    # What is no number, or no finite one, cannot be rounded.
    count = round(share * len(train)) if math.isfinite(share) else 0
    if not 0 < count < len(train):
        raise InputError(
            f"a share of {share} of {len(train)} training images is {count}, which leaves none to choose by, "
            f"or none to train on: give one between 0 and 1, such as 0.05."
        )
    order = train.shuffled()
    return train.part(sorted(order[count:])), train.part(order[:count])


def _check_kind(dataset: str) -> None:
    kind, slash, name = dataset.partition("/")
    if slash and kind.lower() in _KINDS:
        return
    near = difflib.get_close_matches(kind.lower(), _KINDS, n=1) if slash else ["torch"]
    meant = f" Did you mean {f'{near[0]}/{name or kind}'!r}?" if near else ""
    raise InputError(
        f"unknown dataset {dataset!r}.{meant} Those of timm begin with {', '.join(f'{k}/' for k in _KINDS)}; "
        f"for folders of images, leave out --dataset."
    )


def _check_folders(root: str, splits: tuple[str, str]) -> None:
    if not os.path.isdir(root):
        raise InputError(
            f"there is no folder '{root}': give one with a folder for training and one for validation."
        )
    for split in splits:
        tried = _FOLDERS.get(split, (split,))
        if not any(os.path.isdir(os.path.join(root, name)) for name in tried):
            raise InputError(
                f"'{root}' has no folder {' or '.join(f'{name}/' for name in tried)}: images lie in "
                f"{tried[0]}/CLASS/*.jpg."
            )


def _opened(root: str, dataset: str, split: str, mode: str, **options: Any) -> Any:
    try:
        return create_dataset(
            dataset, root=root, split=split, is_training=split == "train", input_img_mode=mode, **options
        )
    except Exception as error:  # of timm's readers, torchvision and what they read with
        raise InputError(
            f"cannot read {dataset or 'images'} for {split} in '{root}': {reason(error)}."
        ) from error


def _names(dataset: Any) -> tuple[str, ...] | None:
    indices = getattr(getattr(dataset, "reader", None), "class_to_idx", None)
    if isinstance(indices, dict):
        return tuple(sorted(indices, key=lambda name: cast(int, indices[name])))
    names = getattr(dataset, "classes", None)
    return None if names is None else tuple(str(name) for name in names)


def train_loader(
    data: Data, recipe: Recipe, processes: Processes, *, workers: int = 4, channels: int = 3
) -> Any:
    """Augmented batches: images (N, C, H, W) float32, normalised, and classes (N,) int64.

    Raises InputError where the images do not fill one batch, and for an auto_augment that timm does not know.
    """
    with _posterizing_to_black():
        loader = create_loader(
            data.train,
            input_size=(channels, recipe.img_size, recipe.img_size),
            batch_size=recipe.micro_batch(processes.count),
            is_training=True,
            re_prob=recipe.erasing,
            re_mode=recipe.erasing_mode,
            scale=(recipe.crop_scale, 1.0),
            hflip=recipe.flip,
            color_jitter=recipe.color_jitter,
            auto_augment=policy(recipe, channels),
            num_aug_repeats=recipe.repeats,
            interpolation=recipe.interpolation,
            **_loading(processes, workers, channels),
        )
    if len(loader) < recipe.accumulation:
        raise InputError(
            f"{len(data.train)} images for training do not fill one batch of {recipe.batch}"
            f"{f' with each image {recipe.repeats} times' if recipe.repeats else ''}: make batch smaller."
        )
    return loader


@contextmanager
def _posterizing_to_black() -> Iterator[None]:
    """Within, timm makes policies whose strongest posterizing works: Pillow 13 refuses to keep no bit."""
    before = dict(auto_augment.NAME_TO_OP)
    auto_augment.NAME_TO_OP.update(
        {name: _posterize for name, made in before.items() if made is auto_augment.posterize}
    )
    try:
        yield
    finally:
        auto_augment.NAME_TO_OP.update(before)


def _posterize(image: Image.Image, bits: int, **options: Any) -> Image.Image:
    """As timm's; without any bit black, as Pillow made it before version 13."""
    if bits == 0:
        return Image.new(image.mode, image.size)
    found: Image.Image = auto_augment.posterize(image, bits, **options)
    return found


def policy(recipe: Recipe, channels: int) -> str | None:
    """The auto_augment that is used, as timm takes it: of grey pictures none, as it is of colours.

    Raises InputError for one that timm does not know, which has no error of its own for that.
    """
    text = recipe.auto_augment
    try:
        create_transform(32, is_training=True, auto_augment=text or None)
    except (AssertionError, ValueError) as error:
        raise InputError(
            f"auto_augment {text!r} is no policy of timm ({error}): give one such as "
            f"'rand-m9-mstd0.5-inc1', 'augmix-m3' or 'original', or none: --set auto_augment=."
        ) from error
    return text if text and channels == 3 else None


def validation_loader(
    data: Data, recipe: Recipe, processes: Processes, *, workers: int = 4, channels: int = 3, batch: int = 0
) -> Any:
    """Batches of the middle of each picture to evaluate on, in order; every process has its share.

    batch: images at once; 0 is the recipe's on one process.
    """
    return evaluation_loader(
        data.validation, recipe, processes, workers=workers, channels=channels, batch=batch
    )


def evaluation_loader(
    dataset: Any, recipe: Recipe, processes: Processes, *, workers: int, channels: int, batch: int = 0
) -> Any:
    """The same of any part of the images."""
    return create_loader(
        dataset,
        input_size=(channels, recipe.img_size, recipe.img_size),
        batch_size=batch or recipe.micro_batch(processes.count),
        is_training=False,
        interpolation=recipe.interpolation,
        crop_pct=recipe.crop,
        **_loading(processes, workers, channels),
    )


def _loading(processes: Processes, workers: int, channels: int) -> dict[str, Any]:
    """How any batches are made."""
    if not 0 <= workers <= _MOST_WORKERS:
        raise InputError(
            f"so many processes cannot load images: --workers takes 0, which is none beside this one, to "
            f"{_MOST_WORKERS}, but got {workers}."
        )
    return {
        "mean": photo.of_channels(IMAGENET_DEFAULT_MEAN, channels),
        "std": photo.of_channels(IMAGENET_DEFAULT_STD, channels),
        "num_workers": workers,
        "distributed": True,
        "device": processes.device,
        "pin_memory": processes.device.type == "cuda",
        # Workers that live on keep their random numbers from epoch to epoch, which no resumed run could have.
        "persistent_workers": False,
    }


def mixup(recipe: Recipe, classes: int) -> Any:
    """timm's Mixup for this recipe, which makes (images, classes) of a batch to (images, soft targets).

    None where the recipe mixes none.
    """
    if not recipe.mixes:
        return None
    return Mixup(
        mixup_alpha=recipe.mixup,
        cutmix_alpha=recipe.cutmix,
        prob=recipe.mix_prob,
        switch_prob=recipe.mix_switch_prob,
        label_smoothing=recipe.smoothing,
        num_classes=classes,
    )


def set_epoch(loader: Any, seed: int) -> None:
    """Make the order of the images that which follows from a seed."""
    for part in (loader.sampler, loader.dataset):
        if hasattr(part, "set_epoch"):
            part.set_epoch(seed)


def batches(loader: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """What a loader gives; an error of a worker process as it was raised there, without its traceback."""
    try:
        yield from loader
    except InputError as error:
        text = str(error)
        raise (
            InputError(text.rpartition("InputError: ")[2].strip()) if _CAUGHT in text else error
        ) from error
    except Effv2Error:
        raise
    except (ValueError, TypeError, AssertionError, RuntimeError) as error:
        if torch.utils.data.get_worker_info() is None and "DataLoader worker" in str(error):
            raise InputError(
                f"a process that loads images ended: {str(error).strip().splitlines()[-1]}"
            ) from error
        raise
