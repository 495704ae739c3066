"""A 3x3 depthwise convolution by itself: see ``csrc/cuda/tiles/depthwise_map.h``."""

from __future__ import annotations

from torch import Tensor

from effv2_kernels import _cuda
from effv2_kernels.cuda.launch import Launch, shapes
from effv2_kernels.gpu.launch import FeatureMap, blocks_of


def depthwise(
    x: FeatureMap, dw: Tensor, dw_bias: Tensor, *, stride: int = 2, activation: str = "none"
) -> Launch:
    """y = f(dw(x)). dw, dw_bias: see ``gpu.packing``."""
    y = x.like(x.channels, blocks_of(x.height, stride), blocks_of(x.width, stride))
    arguments = {
        "images": x.images, "height": x.height, "width": x.width, "channels": x.channels,
        "y_height": y.height, "y_width": y.width, "stride": stride, "activation": activation,
        "x": x, "dw": dw, "dw_bias": dw_bias, "y": y,
    }  # fmt: skip
    return Launch(
        kind="depthwise", dtype=x.dtype, arguments=arguments, tiles=shapes(_cuda.SHAPES["depthwise"]),
        output=y, macs=9 * y.elements,
    )  # fmt: skip
