"""MobileNetV2.

Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", arXiv 1801.04381.
"""

from __future__ import annotations

from typing import Any

from effv2_kernels import checkpoint as files
from effv2_kernels.errors import ModelError
from effv2_kernels.families import ModelOptions
from effv2_kernels.families.mobilenet_v2 import own, timm, torchvision
from effv2_kernels.families.mobilenet_v2 import weights as keys
from effv2_kernels.families.mobilenet_v2.architecture import VARIANTS, Architecture, scaled
from effv2_kernels.families.mobilenet_v2.model import MobileNetV2
from effv2_kernels.families.mobilenet_v2.shapes import network_shapes
from effv2_kernels.shapes import BlockShape

NAME = "MobileNetV2"

# Told by its class the package's own model comes first: the others are told by structure.
READERS = {"effv2_kernels.create_model": own, "timm": timm, "torchvision": torchvision}

__all__ = ["NAME", "READERS", "VARIANTS", "Architecture", "MobileNetV2", "network_shapes", "scaled"]


def architecture_of(given: Any) -> Architecture | None:
    """An architecture of this family; there are no files of it."""
    return given if isinstance(given, Architecture) else None


def sizes(architecture: Architecture) -> dict[str, Any]:
    """Its fields; a stage is its expansion, channels, repeats and stride."""
    return {"stem": architecture.stem, "stages": architecture.stages, "features": architecture.features}


def create(architecture: Architecture, options: ModelOptions, name: str | None = None) -> MobileNetV2:
    """A model of any architecture; ``name`` is the variant's, where it is one.

    checkpoint: with torchvision's or timm's keys. img_size: any, since the model takes images of any size.

    Raises ModelError for distillation=True, since the family has no second classifier, and for a drop-path
    rate.
    """
    if options.distillation:
        raise ModelError(f"{name or NAME} has no classifier for distillation: leave out distillation=True.")
    if options.drop_path_rate:
        raise ModelError(f"{name or NAME} is trained without drop-path: leave out drop_path_rate.")
    model = MobileNetV2(
        architecture,
        in_channels=options.in_channels,
        num_classes=options.num_classes,
        features_only=options.features_only,
    )
    checkpoint = options.checkpoint
    if options.pretrained and name is not None:
        checkpoint = files.fetch(keys.repository(name))
    if checkpoint is not None:
        keys.load(model, checkpoint, options.weights)
    return model


def variant_shapes(
    variant: str, image: tuple[int, int] = (224, 224), *, classes: int = 1000
) -> list[BlockShape]:
    """The shapes of the blocks of a variant, in order of execution."""
    return network_shapes(VARIANTS[variant], image, classes=classes)


def short(variant: str) -> str:
    """ "mobilenetv2_140" -> "MobileNetV2 x1.4"; the d of deeper ones stays behind it."""
    factor = variant.rpartition("_")[2]
    return f"{NAME} x{int(factor.rstrip('d')) / 100}{'d' * factor.endswith('d')}"


def advice(source: str, height: int, width: int) -> str:
    """Nothing: there are no attention biases."""
    return ""
