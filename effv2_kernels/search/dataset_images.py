"""Images of a folder or dataset that training reads, as searches ask for them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from effv2_kernels.errors import InputError
from effv2_kernels.search.supernet import supernet_file
from effv2_kernels.search.supernet.supernet import Supernet
from effv2_kernels.train.data import Data, Pictures, batches, evaluation_loader, open_data
from effv2_kernels.train.distributed import Processes
from effv2_kernels.train.recipe import Recipe

# What is kept in memory of each of both; more is read again for every subnet.
_KEPT_BYTES = 2 << 30


class DatasetImages:
    """Images of ``train.open_data``, cut and normalised as for an evaluation.

    recipe: says their size and how they are cut; its batch is that of images at once. calibration: how many
    training images make statistics, most: how many held-out ones are compared on, drawn at random, the same
    every time; None takes all. workers: processes that read them.

    Batches for statistics are of nearly one size, the recipe's at most, as those of ``TensorImages`` are.

    Raises InputError for images that have no numbers, and where there are none.
    """

    def __init__(
        self,
        data: Data,
        recipe: Recipe,
        processes: Processes,
        *,
        channels: int,
        calibration: int | None = 1000,
        most: int | None = None,
        workers: int = 4,
    ) -> None:
        training, held_out = (
            _some(part, n) for part, n in ((data.train, calibration), (data.held_out, most))
        )
        self.recipe, self._calibration = recipe, len(training)
        # What fine-tuning has to train on: what was held out as well.
        self.trainable = len(data.train) + (0 if data.held_out is data.validation else len(data.held_out))
        # Other pictures, others made of them, or other batches of them, are other images.
        even = len(training) <= recipe.batch or len(training) % recipe.batch == 0
        self.identity = (
            f"{len(held_out)} held-out images ({held_out.digest()}), {len(training)} for statistics "
            f"({training.digest()}), of {channels}x{recipe.img_size}x{recipe.img_size}, "
            f"{'' if even else 'nearly '}{recipe.batch} at once, crop {recipe.crop}, {recipe.interpolation}"
        )
        image = 4 * channels * recipe.img_size**2  # bytes
        self._parts = [
            _Kept(
                evaluation_loader(part, recipe, processes, workers=workers, channels=channels),
                fits=len(part) * image <= _KEPT_BYTES,
            )
            for part in (training, held_out)
        ]

    @classmethod
    def of_supernet(
        cls,
        path: str | os.PathLike[str],
        supernet: Supernet,
        root: str | os.PathLike[str],
        processes: Processes,
        *,
        dataset: str = "",
        batch: int = 250,
        calibration: int | None = 1000,
        most: int | None = None,
        workers: int = 4,
    ) -> DatasetImages:
        """Those that the supernet of a file was, and was not, trained on, cut as they were there.

        root, dataset: where they are, as ``train.open_data`` takes it. Raises as the class and as that.
        """
        told, space = supernet_file.images_of(path), supernet.space
        hold_out, trained_on = told.pop("hold_out", 0.0), told.pop("trained_on", None)
        data = open_data(
            root,
            dataset=dataset,
            channels=space.in_channels,
            classes=supernet.num_classes,
            hold_out=hold_out,
        )
        if hold_out and isinstance(data.train, Pictures) and data.train.digest() != trained_on:
            raise InputError(
                f"'{os.fspath(root)}' has other training images than those that the supernet was trained on, "
                f"so that which of them it has not seen is not known: give the same, or train a supernet on "
                f"these."
            )
        recipe = Recipe(img_size=space.img_size[0], batch=batch, mixup=0, cutmix=0, **told)
        return cls(
            data,
            recipe,
            processes,
            channels=space.in_channels,
            calibration=calibration,
            most=most,
            workers=workers,
        )

    def calibration(self) -> Iterator[Tensor]:
        # Statistics are of each batch, and a last one of a single image may have none.
        images = (images for images, _ in self._parts[0])
        yield from _of_nearly_one_size(images, self._calibration, self.recipe.batch)

    def held_out(self) -> Iterable[tuple[Tensor, Tensor]]:
        return self._parts[1]


def _of_nearly_one_size(batches: Iterable[Tensor], count: int, most: int) -> Iterator[Tensor]:
    """The same ``count`` images in the same order, in the fewest batches of at most ``most`` of them.

    Their sizes differ by one at most, as ``tensor_split`` makes them.
    """
    parts = -(-count // most)
    sizes = [count // parts + (part < count % parts) for part in range(parts)]
    left: Tensor | None = None
    for images in batches:
        left = images if left is None else torch.cat((left, images))
        while sizes and len(left) >= sizes[0]:
            size = sizes.pop(0)
            yield left[:size]
            left = left[size:]


class _Kept:
    """The batches of a loader, which are read once where they fit into memory."""

    def __init__(self, loader: Any, *, fits: bool) -> None:
        self._loader, self._fits = loader, fits

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self._whole if self._fits else batches(self._loader))

    @cached_property
    def _whole(self) -> list[tuple[Tensor, Tensor]]:
        return list(batches(self._loader))


def _some(pictures: Any, most: int | None) -> Pictures:
    if not isinstance(pictures, Pictures):
        raise InputError(
            "a search compares subnets on the same images, and this dataset is read in order: give one whose "
            "images have numbers, such as a folder."
        )
    return pictures.part(pictures.shuffled()[:most])
