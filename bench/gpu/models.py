"""The models that are measured, with weights that hide no error."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache
from types import MethodType

import torch
from torch import Tensor, nn

import effv2_kernels
from bench.gpu.targets import name_of
from effv2_kernels.families import Family, families
from effv2_kernels.families.efficientformer_v2.layers import AttentionLayer, DownsampleAttentionLayer
from effv2_kernels.shapes import BlockShape, randomise


def _found(variant: str) -> tuple[Family, str]:
    """The family of a variant, and what that calls it."""
    name = name_of(variant)
    return next(family for family in families() if name in family.VARIANTS), name


@cache
def _on_cpu(variant: str, size: tuple[int, int]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = effv2_kernels.create_model(_found(variant)[1], img_size=size)
        randomise(model)
        return model.requires_grad_(False)


def build(variant: str, size: tuple[int, int], device: torch.device) -> nn.Module:
    """A model of its own with random weights, BatchNorm statistics and layer scales; fp32, in eval mode.

    variant: "s0" to "l", or the whole name of another family's, such as "mobilenetv2_100". size: rows and
    columns of its images. The same weights at every call.
    """
    with torch.inference_mode(False):  # whose tensors could not be packed
        return copy.deepcopy(_on_cpu(variant, size)).to(device)


def keep_biases(model: nn.Module) -> None:
    """Gather every attention bias of a model in eval mode once and for all, as timm's models do."""
    for module in model.modules():
        if isinstance(module, (AttentionLayer, DownsampleAttentionLayer)):
            # A buffer: what a CUDA graph of torch.compile need not copy for each call.
            module.register_buffer("kept_bias", module.bias(module.grid).detach())
            module.bias = MethodType(_kept, module)  # type: ignore[method-assign]


def _kept(module: nn.Module, grid: tuple[int, int]) -> Tensor:
    return module.kept_bias  # type: ignore[return-value]


def shapes_of(variants: Sequence[str], size: tuple[int, int] = (224, 224)) -> dict[str, BlockShape]:
    """Every different block of some variants for images of (rows, columns); of several the first is named."""
    found: dict[str, BlockShape] = {}
    for variant in variants:
        family, name = _found(variant)
        for shape in family.variant_shapes(name, size):
            if shape not in found.values():
                found[f"{variant}-{shape}"] = shape
    return found
