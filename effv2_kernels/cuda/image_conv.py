"""The convolution that a network without a stem begins with: see ``csrc/cuda/tiles/image_conv.h``."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from effv2_kernels.cuda.launch import Launch, Shape, fitting
from effv2_kernels.gpu.launch import FeatureMap, blocks_of

# Channels of an image, whose strides may be any.
CHANNELS = 3

# Pixels of a tile of the output, largest first.
_TILES = ((8, 28), (8, 14), (4, 14), (2, 14))


def convolved_image(x: FeatureMap, w: Tensor, bias: Tensor, outputs: int, *, activation: str) -> Launch:
    """y = f(conv3x3(x)) with stride 2. w: see ``packing.image_factor``."""
    y = x.like(outputs, blocks_of(x.height, 2), blocks_of(x.width, 2))

    arguments = {
        **image_fields(x), "outputs": outputs, "y_height": y.height, "y_width": y.width,
        "activation": activation, "x": x, "w": w, "bias": bias, "y": y,
    }  # fmt: skip
    found = [Shape({"tile_height": r, "tile_width": c}, 8, 1, 0, "only") for r, c in _TILES]
    return Launch(
        kind="image_conv",
        dtype=x.dtype,
        arguments=arguments,
        tiles=fitting("image_conv", x.dtype, arguments, found),
        output=y,
        macs=9 * y.elements * x.channels,
    )


def image_fields(x: FeatureMap) -> dict[str, Any]:
    """The sizes and strides of images."""
    pixel = x.width * x.channels
    strides = x.strides or (x.height * pixel, 1, pixel, x.channels)
    names = ("image_stride", "channel_stride", "row_stride", "column_stride")
    sizes = {"images": x.images, "height": x.height, "width": x.width}
    return {**sizes, **dict(zip(names, strides, strict=True))}
