"""Talking-head attention, ``blocks.Attention``, in three launches, or four with a stride.

1. A product: q, k and v of x, or of its strided depthwise convolution.
2. ``csrc/cuda/blocks/attention.h``: all between those and u.
3. A product: proj of u, which with a stride is enlarged on the way, plus x.
"""

from __future__ import annotations

import torch

from effv2_kernels import _cuda, blocks
from effv2_kernels.cuda.depthwise import depthwise
from effv2_kernels.cuda.launch import Launch, Shape, fitting
from effv2_kernels.cuda.packing import bias_of_product, right_factor, values_factor
from effv2_kernels.cuda.product import enlarged_product, pointwise_product
from effv2_kernels.gpu.attention import PackedAttention
from effv2_kernels.gpu.launch import FeatureMap, blocks_of

# Queries of a tile.
_QUERIES = 16


class Attention(PackedAttention):
    """``blocks.Attention`` with its weights in the kernels' layouts."""

    def __init__(self, block: blocks.Attention, dtype: torch.dtype, device: torch.device | str) -> None:
        super().__init__(block, dtype, device)
        self.qkv = right_factor(block.qkv.weight, dtype, device)
        self.qkv_bias = bias_of_product(block.qkv.bias, device)
        self.proj = right_factor(values_factor(block.proj.weight), dtype, device)
        self.proj_bias = bias_of_product(block.proj.bias, device)

    def plan(self, x: FeatureMap, precision: str) -> list[Launch]:
        launches: list[Launch] = []
        source = x
        if self.dw is not None and self.dw_bias is not None:
            launches.append(depthwise(x, self.dw, self.dw_bias))
            source = launches[-1].output
        channels = self.heads * (2 * self.key_dim + self.value_dim)
        launches.append(pointwise_product(source, self.qkv, self.qkv_bias, channels))
        # What is enlarged is activated behind that.
        launches.append(self._heads(launches[-1].output, "none" if self.dw is not None else self.activation))
        u = launches[-1].output
        if self.dw is not None:
            last = enlarged_product(u, self.proj, self.proj_bias, x, activation=self.activation)
        else:
            last = pointwise_product(u, self.proj, self.proj_bias, x.channels, residual=x)
        return [*launches, last]

    def _heads(self, qkv: FeatureMap, activation: str) -> Launch:
        u = qkv.like(self.heads * self.value_dim)
        tokens = qkv.height * qkv.width
        bias, dense = self.bias.of(qkv.height, qkv.width)
        tiles = blocks_of(tokens, _QUERIES)
        arguments = {
            "images": qkv.images, "height": qkv.height, "width": qkv.width, "dense": int(dense),
            "activation": activation, "qkv": qkv, "mix1": self.mix1, "bias": bias,
            "mix2": self.mix2, "mix2_bias": self.mix2_bias,
            "local": self.local, "local_bias": self.local_bias, "u": u,
        }  # fmt: skip
        # All queries of an image in one block of threads read its keys and values once.
        found = [
            Shape({"query_tiles": count}, 8, 1, number, name)
            for count in sorted({tiles, blocks_of(tiles, 2), 1}, reverse=True)
            for number, name in reversed(list(enumerate(_cuda.SHAPES["attention"])))
        ]
        return Launch(
            kind="attention",
            dtype=qkv.dtype,
            arguments=arguments,
            tiles=fitting("attention", qkv.dtype, arguments, found),
            output=u,
            macs=qkv.images * tokens * self.heads
            * (tokens * (self.key_dim + 2 * self.heads + self.value_dim) + 9 * self.value_dim),
        )  # fmt: skip
