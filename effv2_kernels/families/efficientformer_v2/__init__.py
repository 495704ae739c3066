"""EfficientFormerV2.

Li et al., "Rethinking Vision Transformers for MobileNet Size and Speed", arXiv 2212.08059.
"""

from __future__ import annotations

import json
import os
from typing import Any

from effv2_kernels.families import ModelOptions
from effv2_kernels.families.efficientformer_v2 import official, own, timm
from effv2_kernels.families.efficientformer_v2.architecture import VARIANTS, Architecture
from effv2_kernels.families.efficientformer_v2.model import EfficientFormerV2
from effv2_kernels.families.efficientformer_v2.shapes import network_shapes
from effv2_kernels.families.efficientformer_v2.weights import load_into, read, read_pretrained
from effv2_kernels.shapes import BlockShape

NAME = "EfficientFormerV2"

# Told by its class the package's own model comes first: the others are told by structure.
READERS = {"effv2_kernels.create_model": own, "timm": timm, "the official code": official}

__all__ = ["NAME", "READERS", "VARIANTS", "Architecture", "EfficientFormerV2", "network_shapes"]

# How a model of other images is made, by the network's source.
_REMADE = {
    "timm": "timm.create_model(..., img_size=({0}, {1}))",
    "official": "EfficientFormerV2(..., resolution={0})",
    "reference": "effv2_kernels.create_model(..., img_size=({0}, {1}))",
}


def architecture_of(given: Any) -> Architecture | None:
    """An architecture of this family, given as itself or as the path of its architecture.json."""
    if isinstance(given, (str, os.PathLike)):
        return Architecture.read(given)
    return given if isinstance(given, Architecture) else None


def sizes(architecture: Architecture) -> dict[str, Any]:
    """As in its architecture.json."""
    found: dict[str, Any] = json.loads(architecture.to_json())
    return found


def create(architecture: Architecture, options: ModelOptions, name: str | None = None) -> EfficientFormerV2:
    """A model of any architecture; ``name`` is the variant's, where it is one.

    checkpoint: with timm's or the official keys. img_size: the attention biases are made for it; None is 224,
    or the training size of the checkpoint's backbone where that is an official detection or segmentation
    backbone (with features_only), which takes any size. distillation: a second classifier; None is True.
    drop_path_rate: in training, of the last block.
    """
    given = None
    if options.checkpoint is not None:
        given = read(options.checkpoint, options.weights)
    elif options.pretrained and name is not None:
        given = read_pretrained(name, options.weights)
    backbone = given if options.features_only else None
    img_size = options.img_size
    if img_size is None:
        img_size = backbone.img_size() if backbone is not None and backbone.resize_bias else 224
    model = EfficientFormerV2(
        architecture,
        img_size=img_size,
        in_channels=options.in_channels,
        num_classes=options.num_classes,
        distillation=options.distillation is not False,
        features_only=options.features_only,
        feature_norms=None if backbone is None else backbone.feature_norms(),
        resize_bias=backbone is not None and backbone.resize_bias,
        drop_path_rate=options.drop_path_rate,
    )
    if given is not None:
        load_into(model, given)
    return model


def variant_shapes(
    variant: str, image: tuple[int, int] = (224, 224), *, classes: int = 1000
) -> list[BlockShape]:
    """The shapes of the blocks of a variant, in order of execution."""
    return network_shapes(VARIANTS[variant], image, classes=classes)


def short(variant: str) -> str:
    """ "efficientformerv2_s0" -> "S0"."""
    return variant.rpartition("_")[2].upper()


def advice(source: str, height: int, width: int) -> str:
    """What to do, beside resizing it, about an image of height x width that attention biases do not fit."""
    if source == "official" and height != width:
        return " (the official classifier takes square images only)"
    remade = _REMADE.get(source)
    return "" if remade is None else f", or make the model with {remade.format(height, width)}"
