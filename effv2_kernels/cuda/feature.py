"""The scale and shift of a feature map that a network returns: ``blocks.Feature`` in one launch."""

from __future__ import annotations

import torch

from effv2_kernels import _cuda, blocks
from effv2_kernels.cuda.launch import Launch, shapes
from effv2_kernels.gpu.launch import FeatureMap
from effv2_kernels.gpu.packing import Packed, vector


class Feature(Packed):
    """``blocks.Feature`` with a scale and a shift; y = scale * x + shift."""

    def __init__(self, feature: blocks.Feature, device: torch.device | str) -> None:
        assert feature.scale is not None
        assert feature.shift is not None
        self.scale, self.shift = vector(feature.scale, device), vector(feature.shift, device)

    def plan(self, x: FeatureMap, precision: str) -> list[Launch]:
        y = x.like(x.channels)
        arguments = {
            "images": x.images, "height": x.height, "width": x.width, "channels": x.channels,
            "x": x, "scale": self.scale, "shift": self.shift, "y": y,
        }  # fmt: skip
        return [
            Launch(
                kind="feature", dtype=x.dtype, arguments=arguments, tiles=shapes(_cuda.SHAPES["feature"]),
                output=y, macs=0,
            )
        ]  # fmt: skip
