"""What backends keep alike of ``blocks.Feature``, the scale and shift of a map that a network returns."""

from __future__ import annotations

import torch

from effv2_kernels import blocks
from effv2_kernels.gpu.packing import Packed, vector


class PackedFeature(Packed):
    """y = scale * x + shift; a backend adds its plan."""

    def __init__(self, feature: blocks.Feature, device: torch.device | str) -> None:
        assert feature.scale is not None
        assert feature.shift is not None
        self.scale, self.shift = vector(feature.scale, device), vector(feature.shift, device)
