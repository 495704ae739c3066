"""The images that subnets are compared on."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from effv2_kernels.checkpoint import files
from effv2_kernels.checkpoint.choice import listed
from effv2_kernels.errors import InputError


class Images(Protocol):
    """The same images, in the same order, whenever they are asked for."""

    @property
    def identity(self) -> str:
        """Another text for other images."""

    def calibration(self) -> Iterable[Tensor]:
        """Batches (N, C, H, W) of training images, for BatchNorm statistics."""

    def held_out(self) -> Iterable[tuple[Tensor, Tensor]]:
        """Batches (N, C, H, W) that the supernet was not trained on, and their classes (N,) int64."""


@dataclass(frozen=True, eq=False)
class TensorImages:
    """Images in memory. training, images: (N, C, H, W); classes: (N,) int64, of ``images``.

    batch: images at once. Raises InputError where the tensors do not fit together.
    """

    training: Tensor
    images: Tensor
    classes: Tensor
    batch: int = 250

    def __post_init__(self) -> None:
        if (
            self.training.ndim != 4
            or self.images.ndim != 4
            or self.training.shape[1:] != self.images.shape[1:]
        ):
            raise InputError(
                f"training and held-out images must be (N, C, H, W) of one size; got "
                f"{tuple(self.training.shape)} and {tuple(self.images.shape)}."
            )
        if self.classes.shape != self.images.shape[:1] or self.classes.dtype != torch.int64:
            raise InputError(
                f"{len(self.images)} images need as many classes, int64; got {self.classes.dtype} of shape "
                f"{tuple(self.classes.shape)}."
            )
        if not len(self.training) or not len(self.images):
            raise InputError(
                f"a search needs training and held-out images; got {len(self.training)} and "
                f"{len(self.images)}."
            )

    @cached_property
    def identity(self) -> str:
        found = hashlib.sha256()
        for tensor in (self.training, self.images, self.classes):
            found.update(str((tensor.dtype, tuple(tensor.shape))).encode())
            found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return (
            f"{len(self.images)} held-out images, {len(self.training)} for statistics, {self.batch} at once "
            f"({found.hexdigest()[:16]})"
        )

    def calibration(self) -> Iterator[Tensor]:
        # Batches of nearly one size: statistics are of each batch, and a last one of a single image has none.
        yield from self.training.tensor_split(-(-len(self.training) // self.batch))

    def held_out(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(self.images.split(self.batch), self.classes.split(self.batch), strict=True)


def tensor_images(
    path: str | os.PathLike[str],
    *,
    img_size: tuple[int, int],
    in_channels: int,
    classes: int,
    batch: int = 250,
    calibration: int | None = None,
    most: int | None = None,
) -> TensorImages:
    """Images of a .safetensors file, for a supernet of this img_size, so many channels and classes.

    The file has the tensors ``training``, ``images`` and ``classes``, see ``TensorImages``. calibration,
    most: use the first so many training images, and held-out ones.

    Raises InputError where they do not fit the supernet, CheckpointError where the file cannot be read.
    """
    found = _of_file(path, batch, calibration, most)
    size = (in_channels, *img_size)
    if (
        tuple(found.images.shape[1:]) != size
        or not 0 <= int(found.classes.min()) <= int(found.classes.max()) < classes
    ):
        raise InputError(
            f"'{os.fspath(path)}' has images {tuple(found.images.shape[1:])} of the classes "
            f"{int(found.classes.min())} to {int(found.classes.max())}, and the supernet takes images "
            f"{size} of {classes} classes: give the images that it was trained for."
        )
    return found


def _of_file(
    path: str | os.PathLike[str], batch: int, calibration: int | None, most: int | None
) -> TensorImages:
    tensors = files.read(Path(path))
    names = ("training", "images", "classes")
    missing = [name for name in names if name not in tensors]
    if missing:
        raise InputError(
            f"'{os.fspath(path)}' has no tensor {' and no '.join(missing)}, but {listed(list(tensors))}: a "
            f"file of images has {', '.join(names)}."
        )
    training, images, classes = (tensors[name] for name in names)
    return TensorImages(training[:calibration], images[:most], classes[:most], batch)
