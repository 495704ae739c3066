"""The families of networks that are read and made, one folder each: the one table of them.

A folder holds the architecture in plain PyTorch, the variants and their shapes, the keys of weight files, and
one reader for each origin of its models. Nothing else knows a family by name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, cast

from torch import nn

from effv2_kernels import memory
from effv2_kernels.errors import ModelError, UnknownNameError

if TYPE_CHECKING:
    from effv2_kernels import blocks
    from effv2_kernels.shapes import BlockShape
    from effv2_kernels.sources.node import Node

# In order of trial. A new family is a new folder and its name here.
FOLDERS = ("efficientformer_v2", "mobilenet_v2")


@dataclass(frozen=True)
class ModelOptions:
    """What ``create_model`` was asked for, and says the meaning of; nothing that contradicts itself."""

    checkpoint: str | os.PathLike[str] | None
    pretrained: bool
    num_classes: int
    img_size: int | tuple[int, int] | None
    features_only: bool
    in_channels: int
    distillation: bool | None
    weights: str
    drop_path_rate: float = 0.0


class Reader(Protocol):
    """What reads a family's models of one origin."""

    def matches(self, module: nn.Module) -> bool:
        """Whether the module has this origin's structure; cheap, and reads no weights."""

    def read(self, module: nn.Module) -> blocks.Network:
        """The folded network of a usable module; ModelError for whatever is not supported."""

    def part_reader(self, module: nn.Module) -> Callable[[Node], list[tuple[str, blocks.Block]]] | None:
        """What reads the blocks of a part that stands alone, None for anything that is not one."""


class Family(Protocol):
    """What a folder offers."""

    @property
    def NAME(self) -> str:
        """For messages."""

    @property
    def READERS(self) -> Mapping[str, Reader]:
        """By what messages call their origin, in order of trial."""

    @property
    def VARIANTS(self) -> Mapping[str, Any]:
        """The architectures that have a name."""

    def architecture_of(self, given: Any) -> Any | None:
        """The architecture that is given, or that the file of this path holds; None where it is not its own.

        ModelError for a file that holds none.
        """

    def sizes(self, architecture: Any) -> dict[str, Any]:
        """Its fields as plain values, in the one form in which equal networks are equal."""

    def create(self, architecture: Any, options: ModelOptions, name: str | None = None) -> nn.Module:
        """A model of any architecture, ``name`` that of a variant.

        ModelError for an option that the family does not have.
        """

    def variant_shapes(
        self, variant: str, image: tuple[int, int] = (224, 224), *, classes: int = 1000
    ) -> list[BlockShape]:
        """The shapes of the blocks of a variant, in order of execution."""

    def short(self, variant: str) -> str:
        """What tables and pictures call a variant."""

    def advice(self, source: str, height: int, width: int) -> str:
        """What to do, beside resizing it, about an image that the attention biases do not fit; "" is nothing.

        source: ``Network.source`` of a network of any family.
        """


@cache
def family_of(folder: str) -> Family:
    """The family of a folder."""
    return cast("Family", import_module(f"{__name__}.{folder}"))


def families() -> list[Family]:
    """All families, in order of trial."""
    return [family_of(folder) for folder in FOLDERS]


def names() -> str:
    """ "EfficientFormerV2 or another", for messages."""
    return " or ".join(family.NAME for family in families())


def readers() -> list[Reader]:
    """Those of all families, in order of trial."""
    return [reader for family in families() for reader in family.READERS.values()]


def origins() -> str:
    """Where models may come from, for messages."""
    return ", ".join(dict.fromkeys(origin for family in families() for origin in family.READERS))


def variants() -> dict[str, Family]:
    """Of all families, by name."""
    return {variant: family for family in families() for variant in family.VARIANTS}


def short(model: str) -> str:
    """What tables and pictures call a model: "S0" for efficientformerv2_s0; what is no variant, itself."""
    family = variants().get(model)
    return model if family is None else family.short(model)


def variant_named(text: str) -> str:
    """The variant of this name, given in full or by what stands behind its underscore: "s0".

    Raises UnknownNameError where there is none.
    """
    known = variants()
    found = [name for name in known if text in (name, name.rpartition("_")[2])]
    if not found:
        raise UnknownNameError.of("model", text, known)
    return found[0]


def advice(source: str, height: int, width: int) -> str:
    """See ``Family.advice``: that of the family whose source it is."""
    return next(filter(None, (family.advice(source, height, width) for family in families())), "")


@memory.needed_to("make this model")
def create_model(
    name: str | None = None,
    *,
    architecture: Any = None,
    checkpoint: str | os.PathLike[str] | None = None,
    pretrained: bool = False,
    num_classes: int = 1000,
    img_size: int | tuple[int, int] | None = None,
    features_only: bool = False,
    in_channels: int = 3,
    distillation: bool | None = None,
    weights: str = "auto",
    drop_path_rate: float = 0.0,
) -> nn.Module:
    """A published variant of a family (its ``VARIANTS``), or any other size, in plain PyTorch, in eval mode.

    name: of the variant; None with another architecture.
    architecture: instead of a name, a family's ``Architecture``, or the path of an architecture.json of an
        EfficientFormerV2, which is what a search writes.
    checkpoint: a .pth or .safetensors file with the keys of timm or of the family's other origins.
    pretrained: fetch timm's published weights with huggingface_hub instead.
    num_classes: 0 leaves out the classifier. features_only: return the stages' maps as a list instead.
    img_size: of a family whose models are made for one size of images: rows and columns, one number for both.
        None is 224, or what the checkpoint was trained for where that is known.
    distillation: of a family with a second classifier for it; None is as published.
    weights: which weights of a checkpoint to take. Training scripts keep an average of the weights (EMA, SWA)
        beside the raw ones: "auto" takes the average where there is one, as timm does, and the log of
        ``effv2_kernels.checkpoint`` says what was taken; "average" and "raw" take that, or raise.
    drop_path_rate: of a family that has it, how often the last block's branches are dropped in training
        (stochastic depth); the rate of the others rises to it linearly. Nothing in eval mode.

    Raises UnknownNameError for another name, ModelError for what is no architecture and for options that do
    not fit together or that the family does not have, InputError for numbers that are none, CheckpointError
    for a file that does not fit, or without the weights that are asked for, and UnavailableError where there
    is not enough memory.
    """
    family, made = _asked_for(name, architecture)
    if checkpoint is not None and pretrained:
        raise ModelError("give either checkpoint=... or pretrained=True, not both.")
    if name is None and pretrained:
        raise ModelError("there are published weights for names alone: give a name, or checkpoint=...")
    if checkpoint is None and not pretrained and weights != "auto":
        raise ModelError(f"weights={weights!r} chooses among those of a checkpoint: give checkpoint=... too.")
    options = ModelOptions(
        checkpoint=checkpoint,
        pretrained=pretrained,
        num_classes=num_classes,
        img_size=img_size,
        features_only=features_only,
        in_channels=in_channels,
        distillation=distillation,
        weights=weights,
        drop_path_rate=drop_path_rate,
    )
    return family.create(made, options, name).eval()


def sizes(architecture: Any) -> dict[str, Any]:
    """Those of an architecture, or of its file, as plain values: equal where networks are, however written.

    Raises ModelError where it is none of any family.
    """
    family, made = _asked_for(None, architecture)
    return family.sizes(made)


def _asked_for(name: str | None, architecture: Any) -> tuple[Family, Any]:
    """The family, and the architecture, of exactly one of both."""
    if (name is None) == (architecture is None):
        given = "neither" if name is None else "both"
        raise ModelError(f"give one of the name of a model and architecture=..., but {given} is given.")
    if name is not None:
        known = variants()
        if name not in known:
            raise UnknownNameError.of("model", name, known)
        return known[name], known[name].VARIANTS[name]
    for family in families():
        made = family.architecture_of(architecture)
        if made is not None:
            return family, made
    raise ModelError(
        f"architecture must be the Architecture of {names()} or the path of an architecture.json, but is of "
        f"type {type(architecture).__name__}."
    )
