"""The product that most launches are: see ``csrc/cuda/tiles/product.h``."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from effv2_kernels import _cuda
from effv2_kernels.cuda.launch import Launch, fitting, shapes
from effv2_kernels.gpu.launch import FeatureMap, blocks_of


def pointwise_product(
    x: FeatureMap,
    w: Tensor,
    bias: Tensor,
    outputs: int,
    *,
    activation: str = "none",
    residual: FeatureMap | None = None,
) -> Launch:
    """y = f(x w + bias) + residual, or without the last. w, bias: see ``packing``."""
    y = x.like(outputs)
    return _product("pixels", x, y, w, bias, x.channels, activation=activation, residual=residual)


def window_product(
    x: FeatureMap, w: Tensor, bias: Tensor, outputs: int, *, kernel: int, stride: int, activation: str
) -> Launch:
    """y = f(conv(x)), of 3x3 or 1x1 with a stride."""
    y = x.like(outputs, blocks_of(x.height, stride), blocks_of(x.width, stride))
    depth = kernel * kernel * x.channels
    return _product("window", x, y, w, bias, depth, activation=activation, kernel=kernel, stride=stride)


def joined_product(
    u: FeatureMap, x: FeatureMap, w: Tensor, bias: Tensor, outputs: int, *, stride: int
) -> Launch:
    """y = u w_u + conv3x3(x), of the size of u. w: of the values of u first, then of the window's."""
    depth = u.channels + 9 * x.channels
    return _product(
        "joined", x, u.like(outputs), w, bias, depth, kernel=3, stride=stride, u=u, u_channels=u.channels
    )


def enlarged_product(u: FeatureMap, w: Tensor, bias: Tensor, x: FeatureMap, *, activation: str) -> Launch:
    """y = x + f(bilinear 2x of u) w, cropped to the size of x."""
    return _product("enlarged", u, x.like(x.channels), w, bias, u.channels, activation=activation, residual=x)


def _product(
    source: str,
    x: FeatureMap,
    y: FeatureMap,
    w: Tensor,
    bias: Tensor,
    depth: int,
    *,
    activation: str = "none",
    residual: FeatureMap | None = None,
    **more: Any,
) -> Launch:
    arguments = {
        "source": source, "images": x.images, "height": x.height, "width": x.width, "channels": x.channels,
        "y_height": y.height, "y_width": y.width, "outputs": y.channels, "activation": activation,
        "x": x, "w": w, "bias": bias, "residual": residual, "y": y, **more,
    }  # fmt: skip

    found = shapes(_cuda.SHAPES["product"])
    if source == "enlarged":  # which every tile beside another makes again
        found.sort(key=lambda shape: blocks_of(y.channels, int(shape.name.split("x")[1])))
    return Launch(
        kind="product",
        dtype=y.dtype,
        arguments=arguments,
        tiles=fitting("product", y.dtype, arguments, found),
        output=y,
        macs=y.pixels * y.channels * depth,
    )
