"""Supernets on disk: a safetensors file of the state dict, whose metadata holds the space and the options."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from effv2_kernels import checkpoint, container, fields, memory
from effv2_kernels.checkpoint import files
from effv2_kernels.errors import CheckpointError, ModelError
from effv2_kernels.replacing import replacing
from effv2_kernels.search.space.space import SearchSpace
from effv2_kernels.search.supernet.supernet import Supernet
from effv2_kernels.train.recipe import INTERPOLATIONS

FORMAT, VERSION = "effv2_kernels.supernet", "1"
_OPTIONS = ("num_classes", "distillation", "layer_scale_init", "drop_path_rate")
_IMAGES = ("hold_out", "trained_on", "crop", "interpolation")


def save(
    supernet: Supernet, path: str | os.PathLike[str], *, images: Mapping[str, Any] | None = None
) -> None:
    """Write a supernet so that ``load`` makes it again; the file is the old one or the new one at any time.

    images: JSON values by name, of the images that it was trained on, for ``images_of`` to say.

    Raises CheckpointError where it cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "space": supernet.space.to_json(),
        "options": json.dumps({name: getattr(supernet, name) for name in _OPTIONS}),
        "images": json.dumps(dict(images or {})),
    }
    tensors = {name: t.detach().cpu().contiguous() for name, t in supernet.state_dict().items()}
    try:
        with replacing(Path(path)) as part:
            save_file(tensors, part, metadata=metadata)
            container.sort_metadata(part)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write supernet '{os.fspath(path)}': {error}.") from error


@memory.needed_to("load this supernet")
def load(path: str | os.PathLike[str], space: SearchSpace | None = None) -> Supernet:
    """The supernet of a file that ``save`` wrote, on the CPU, in the dtype of its weights, in eval mode.

    space: what it is expected to be of; None takes any. Raises CheckpointError where the file is missing,
    damaged, no supernet, or of another space, with what differs.
    """
    origin = f"supernet '{os.fspath(path)}'"
    tensors = files.read(Path(path))
    metadata = _metadata(path, origin)
    found, options = _described(metadata, origin)
    dtype = next((t.dtype for t in tensors.values() if t.is_floating_point()), None)
    if dtype is None:
        raise CheckpointError(f"{origin} is damaged: it holds no weights. Train it again, or copy it again.")
    if space is not None and space != found:
        raise CheckpointError(
            f"{origin} is of another search space: {_difference(found, space)}. Search in the space that the "
            f"supernet was trained for, or train one for this space."
        )
    try:
        supernet = Supernet(found, **options)
    except ModelError as error:
        raise CheckpointError(f"{origin} is damaged: {error}") from error
    supernet.to(dtype)
    checkpoint.load_into(
        supernet, tensors, origin, lambda missing, misshapen: checkpoint.Advice("The file is damaged.")
    )
    return supernet.eval()


def _metadata(path: str | os.PathLike[str], origin: str) -> dict[str, str]:
    try:
        metadata = container.read(os.fspath(path)).metadata
    except (OSError, ValueError):  # a checkpoint of another kind, such as torch.save's
        metadata = {}
    if (metadata.get("format"), metadata.get("version")) != (FORMAT, VERSION):
        raise CheckpointError(
            f"{origin} is no supernet of version {VERSION}: give one that training a supernet wrote."
        )
    return metadata


def images_of(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a file says of the images that its supernet was trained on; nothing where it says nothing.

    ``supernet`` writes "hold_out", the share of the training images that it was not trained on, "trained_on",
    the digest of those that it was, and how it cut them: "crop", "interpolation".

    Raises CheckpointError as ``load`` does, and where one of these is none.
    """
    origin = f"supernet '{os.fspath(path)}'"
    metadata = _metadata(path, origin)
    try:
        told = fields.parse(metadata.get("images", "{}"), "its images")
        _check_images(told)
    except ModelError as error:
        raise CheckpointError(f"{origin} is damaged: {error}") from error
    return told


def _check_images(told: dict[str, Any]) -> None:
    """Raise ModelError for a value that is none of its name."""
    fields.check_names(told, "its images", (), _IMAGES)
    hold_out = fields.number(told.get("hold_out", 0), "hold_out of its images")
    crop = fields.number(told.get("crop", 1), "crop of its images")
    if not 0 <= hold_out < 1 or not 0 < crop <= 1:
        raise ModelError(
            f"of its images hold_out must be at least 0 and below 1, and crop above 0 and at most 1, but "
            f"they are {hold_out} and {crop}."
        )
    fields.text(told.get("trained_on", ""), "trained_on of its images")
    interpolation = fields.text(told.get("interpolation", INTERPOLATIONS[0]), "interpolation of its images")
    if interpolation not in INTERPOLATIONS:
        raise ModelError(
            f"interpolation of its images is one of {', '.join(INTERPOLATIONS)}, but is {interpolation!r}."
        )


def _described(metadata: dict[str, str], origin: str) -> tuple[SearchSpace, dict[str, Any]]:
    try:
        options = fields.parse(metadata.get("options", ""), "its options")
        fields.check_names(options, "its options", _OPTIONS)
        _check_options(options)
        return SearchSpace.from_json(metadata.get("space", ""), "its search space"), options
    except ModelError as error:
        raise CheckpointError(f"{origin} is damaged: {error}") from error


def _check_options(options: dict[str, Any]) -> None:
    """Raise ModelError for a value of another type than its option has."""
    fields.integer(options["num_classes"], "num_classes of its options")
    distillation = options["distillation"]
    if type(distillation) is not bool:
        raise ModelError(
            f"distillation of its options must be true or false, but is {fields.shown(distillation)}."
        )
    if options["layer_scale_init"] is not None:
        fields.number(options["layer_scale_init"], "layer_scale_init of its options")
    fields.number(options["drop_path_rate"], "drop_path_rate of its options")


def _difference(found: SearchSpace, wanted: SearchSpace) -> str:
    """The first one."""
    for i, (a, b) in enumerate(zip(found.stages, wanted.stages, strict=True)):
        for name in ("widths", "depths", "ratios", "attention_blocks"):
            mine, theirs = getattr(a, name), getattr(b, name)
            if mine != theirs:
                return f"{name} of stage {i + 1} are {mine} in the file, and {theirs} are asked for"
    return (
        f"images are {found.in_channels}x{found.img_size[0]}x{found.img_size[1]} in the file, and "
        f"{wanted.in_channels}x{wanted.img_size[0]}x{wanted.img_size[1]} are asked for"
    )
