"""The scale and shift of a feature map that a network returns: ``blocks.Feature`` in one launch."""

from __future__ import annotations

from effv2_kernels import _cuda
from effv2_kernels.cuda.launch import Launch, shapes
from effv2_kernels.gpu.feature import PackedFeature
from effv2_kernels.gpu.launch import FeatureMap


class Feature(PackedFeature):
    """``blocks.Feature`` with a scale and a shift; y = scale * x + shift."""

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
