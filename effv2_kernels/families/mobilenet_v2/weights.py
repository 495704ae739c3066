"""The keys of weight files: torchvision's, which the model has, or timm's."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from torch import Tensor

from effv2_kernels import checkpoint
from effv2_kernels.checkpoint.choice import Keys
from effv2_kernels.errors import CheckpointError
from effv2_kernels.families.mobilenet_v2.model import MobileNetV2

KEYS = Keys(
    family="MobileNetV2",
    first=r"(?:features\.0\.0\.|conv_stem\.)",
    known="neither torchvision's keys (features.0.0...) nor timm's (conv_stem...)",
)

# The tag of timm's published weights of a variant.
_TAGS = {
    "mobilenetv2_050": "lamb_in1k",
    "mobilenetv2_100": "ra_in1k",
    "mobilenetv2_110d": "ra_in1k",
    "mobilenetv2_120d": "ra_in1k",
    "mobilenetv2_140": "ra_in1k",
}

# timm's part of an inverted residual -> torchvision's, with expansion and without.
_PARTS = {
    True: {
        "conv_pw": "conv.0.0",
        "bn1": "conv.0.1",
        "conv_dw": "conv.1.0",
        "bn2": "conv.1.1",
        "conv_pwl": "conv.2",
        "bn3": "conv.3",
    },
    False: {"conv_dw": "conv.0.0", "bn1": "conv.0.1", "conv_pw": "conv.1", "bn2": "conv.2"},
}


def repository(name: str) -> str:
    """Where timm's weights of a variant are. Raises CheckpointError where none were published."""
    if name not in _TAGS:
        raise CheckpointError(f"there are no published weights of {name}, but of {', '.join(_TAGS)}.")
    return f"timm/{name}.{_TAGS[name]}"


def load(model: MobileNetV2, path: str | os.PathLike[str], weights: str) -> None:
    """Read a file into the model; weights: as in ``create_model``. See ``effv2_kernels.checkpoint``."""
    origin, tensors = checkpoint.read(path, weights, KEYS)
    given = renamed(tensors)
    if model.features_only:
        last = f"features.{len(model.architecture.blocks()) + 1}."
        given = {key: value for key, value in given.items() if not key.startswith((last, "classifier."))}

    def advice(missing: list[str], misshapen: list[str]) -> checkpoint.Advice:
        classifier = given.get("classifier.1.weight")
        if classifier is not None and any(key.startswith("classifier.") for key in misshapen):
            return checkpoint.Advice.of_classes(classifier.shape[0])
        if missing and all(key.startswith("classifier.") for key in missing):
            text = "The file has no classifier: pass num_classes=0 or features_only=True."
            return checkpoint.Advice(text, {"features_only": True})
        if misshapen == ["features.0.0.weight"]:
            return checkpoint.Advice.of_channels(given["features.0.0.weight"].shape[1])
        return checkpoint.Advice("Check that the file is of this variant and complete.")

    checkpoint.load_into(model, given, origin, advice)


def renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by torchvision's keys, of timm's or torchvision's."""
    if not any(key.startswith("conv_stem.") for key in tensors):
        return dict(tensors)
    places = sorted({_place(key) for key in tensors if key.startswith("blocks.")})
    number = {place: i for i, place in enumerate(places, 1)}
    last = len(places) + 1
    widened = {_place(key) for key in tensors if ".conv_pwl." in key}
    ends = {
        "conv_stem": "features.0.0",
        "bn1": "features.0.1",
        "conv_head": f"features.{last}.0",
        "bn2": f"features.{last}.1",
        "classifier": "classifier.1",
    }
    made = {}
    for key, value in tensors.items():
        part, _, rest = key.partition(".")
        if part == "blocks":
            place = _place(key)
            part, _, rest = key.split(".", 3)[3].partition(".")
            named = _PARTS[place in widened].get(part, part)
            made[f"features.{number[place]}.{named}.{rest}"] = value
        else:
            made[f"{ends.get(part, part)}.{rest}"] = value
    return made


def _place(key: str) -> tuple[int, int]:
    """Stage and block of timm's key."""
    found = re.match(r"blocks\.(\d+)\.(\d+)\.", key)
    return (int(found[1]), int(found[2])) if found else (-1, -1)
