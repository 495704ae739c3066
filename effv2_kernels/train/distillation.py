"""Teachers: any model of timm or of this package, with published weights or those of a file."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import clean_state_dict
from torch import Tensor, nn

import effv2_kernels
from effv2_kernels.checkpoint import files
from effv2_kernels.checkpoint.identity import digest
from effv2_kernels.errors import CheckpointError, Effv2Error, InputError, UnknownNameError, reason
from effv2_kernels.families import create_model, variants
from effv2_kernels.photo import of_channels

# Where files of training keep a model's weights, its average first, as timm looks for them.
_NESTED = ("state_dict_ema", "model_ema", "state_dict", "model")


class Teacher:
    """A model in eval mode whose decisions are labels.

    model: (N, C, H, W) -> logits (N, classes); on a CPU it runs through ``optimize`` where that takes
    it. Its images are those of the student, normalised as it expects:
    ``pretrained_cfg`` says that of timm's models. Raises InputError where it does not take images of this
    size and channels, or has another number of classes.
    """

    def __init__(
        self, model: nn.Module, *, name: str, classes: int, img_size: int, channels: int = 3
    ) -> None:
        self.model = self._run = model.eval().requires_grad_(False)
        self.name = name
        cfg = getattr(model, "pretrained_cfg", {})
        self._ours = tuple(of_channels(v, channels) for v in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
        self._own = tuple(
            of_channels(cfg.get(name) or default, channels)
            for name, default in (("mean", IMAGENET_DEFAULT_MEAN), ("std", IMAGENET_DEFAULT_STD))
        )
        try:
            with torch.no_grad():
                logits = self.model(torch.zeros(1, channels, img_size, img_size))
        except Exception as error:  # models of others refuse in any way
            raise InputError(
                f"the teacher {name} does not take images of {channels}x{img_size}x{img_size} "
                f"({reason(error, lines=3)}): choose another teacher, or train at its size."
            ) from error
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] != classes:
            if isinstance(found, tuple) and len(found) == 2:
                raise _of_other_classes(name, found[1], classes)
            raise InputError(
                f"the teacher {name} gives {found}, and not one row of {classes} logits for each image: take "
                f"another teacher, or none."
            )

    @classmethod
    def named(
        cls, name: str, *, checkpoint: str | None = None, classes: int, img_size: int, channels: int = 3
    ) -> Teacher:
        """A model of timm or of this package by its name, or a file of another size of this package's.

        name: or the path of an architecture.json, such as a search writes. checkpoint: a weight file; None
        fetches the published weights, which need images of 3 channels. Raises UnknownNameError for another
        name, CheckpointError for weights that cannot be had or do not fit, and as the class does.
        """
        sized = Path(name).suffix == ".json"
        if checkpoint is None and sized:
            raise CheckpointError(
                f"the teacher {name} is a network of a file, of which no weights are published: give them "
                f"by --teacher-checkpoint."
            )
        if checkpoint is None and channels != 3:
            raise InputError(
                f"the published weights of the teacher {name} are for images of 3 channels, and these have "
                f"{channels}: give --teacher-checkpoint, or leave out the teacher."
            )
        model = (
            _ours(name, checkpoint, classes, img_size, channels)
            if sized or name in variants()
            else _timms(name, checkpoint, classes, channels)
        )
        return cls(model, name=name, classes=classes, img_size=img_size, channels=channels)

    def to(self, device: torch.device) -> Teacher:
        """Move the model there."""
        self.model.to(device)
        self._run = self.model
        if device.type == "cpu":
            with suppress(Effv2Error):  # a model that it does not know, or without the compiled module
                self._run = effv2_kernels.optimize(self.model)
        return self

    def identity(self) -> str:
        """Digits that tell its weights from others."""
        return digest(self.model)

    @torch.no_grad()
    def labels(self, images: Tensor) -> Tensor:
        """(N,) int64: its decisions on images of the student."""
        if self._own != self._ours:
            ours, own = ([images.new_tensor(v).view(-1, 1, 1) for v in of] for of in (self._ours, self._own))
            images = (images * ours[1] + ours[0] - own[0]) / own[1]
        logits: Tensor = self._run(images)
        return logits.argmax(1)


def _ours(name: str, checkpoint: str | None, classes: int, img_size: int, channels: int) -> nn.Module:
    try:
        named = name in variants()
        return create_model(
            name if named else None,
            architecture=None if named else name,
            checkpoint=checkpoint,
            pretrained=checkpoint is None,
            num_classes=classes if checkpoint else 1000,
            img_size=img_size,
            in_channels=channels,
        )
    except CheckpointError as error:
        raise _unfit(name, error, classes, img_size, channels) from error
    except Effv2Error as error:
        raise CheckpointError(f"the teacher {name}: {error}") from error


def _unfit(
    name: str, error: CheckpointError, classes: int, img_size: int, channels: int
) -> CheckpointError | InputError:
    """Of weights that do not fit: classes and images are those of the data, and no option changes them."""
    fits = error.fits
    if "num_classes" in fits:
        return _of_other_classes(name, fits["num_classes"], classes)
    if "img_size" in fits:
        side = fits["img_size"]
        return InputError(
            f"the teacher {name} is for images of {side - 15} to {side} pixels a side, and these have "
            f"{img_size}: take another teacher or none, or train at its size."
        )
    if "in_channels" in fits:
        return InputError(
            f"the teacher {name} is for images of {fits['in_channels']} channels, and these have {channels}: "
            f"take another teacher, or none."
        )
    if "name" in fits:
        return CheckpointError(
            f"the teacher {name}: the weights are of {fits['name']}: give --teacher {fits['name']}."
        )
    return CheckpointError(f"the teacher {name}: {error}")


def _of_other_classes(name: str, count: int, classes: int) -> InputError:
    return InputError(
        f"the teacher {name} tells {count} classes apart, and the data has {classes}: take a teacher that "
        f"was trained on these classes, from a file with --teacher-checkpoint, or none."
    )


def _timms(name: str, file: str | None, classes: int, channels: int) -> nn.Module:
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, [*timm.list_models(), *variants()], n=3)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise UnknownNameError(
            f"unknown teacher {name!r}.{hint} It is the name of a model of timm (timm.list_models()) or of "
            f"this package ({', '.join(variants())})."
        )
    if file is None:
        try:
            fetched: nn.Module = timm.create_model(name, pretrained=True)
        except Exception as error:  # timm and the hub raise nearly anything
            raise CheckpointError(
                f"the teacher {name}: its weights cannot be fetched: {reason(error, lines=3)}. "
                f"Fetch them by other means and give --teacher-checkpoint."
            ) from error
        return fetched
    content = files.read(Path(file))
    weights = next((content[key] for key in _NESTED if isinstance(content.get(key), Mapping)), content)
    model: nn.Module = timm.create_model(name, num_classes=classes, in_chans=channels)
    try:
        model.load_state_dict(clean_state_dict(dict(weights)))
    except Exception as error:  # RuntimeError for other keys and shapes, others for what is no tensor
        count = _classes_of(model, weights)
        if count is not None and count != classes:
            raise _of_other_classes(name, count, classes) from error
        raise CheckpointError(
            f"the teacher {name}: checkpoint '{file}' does not fit ({reason(error, lines=3)}). The data "
            f"has {classes} classes; give a file of this model and these classes."
        ) from error
    return model


def _classes_of(model: nn.Module, weights: Mapping[str, Any]) -> int | None:
    """How many classes weights of a model of timm tell apart; None where they have no such classifier."""
    classifier = getattr(model, "pretrained_cfg", {}).get("classifier")
    weight = weights.get(f"{classifier}.weight")
    return weight.shape[0] if isinstance(weight, Tensor) and weight.ndim > 1 else None
