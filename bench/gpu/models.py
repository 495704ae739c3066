"""The models that are measured, with weights that hide no error."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache

import torch
from torch import nn

import effv2_kernels
from effv2_kernels.cli.models import randomise
from effv2_kernels.reference.model import VARIANTS
from effv2_kernels.shapes import BlockShape, network_shapes


@cache
def _on_cpu(variant: str, size: tuple[int, int]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = effv2_kernels.create_model(f"efficientformerv2_{variant}", img_size=size)
        randomise(model)
        return model.requires_grad_(False)


def build(variant: str, size: tuple[int, int], device: torch.device) -> nn.Module:
    """A model of its own with random weights, BatchNorm statistics and layer scales; fp32, in eval mode.

    variant: "s0" to "l". size: rows and columns of its images. The same weights at every call.
    """
    with torch.inference_mode(False):  # whose tensors could not be packed
        return copy.deepcopy(_on_cpu(variant, size)).to(device)


def shapes_of(variants: Sequence[str]) -> dict[str, BlockShape]:
    """Every different block of some variants at 224x224; what several share stands under the first."""
    found: dict[str, BlockShape] = {}
    for variant in variants:
        for shape in network_shapes(VARIANTS[f"efficientformerv2_{variant}"]):
            if shape not in found.values():
                found[f"{variant}-{shape}"] = shape
    return found
