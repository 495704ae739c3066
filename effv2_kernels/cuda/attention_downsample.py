"""The step to the last stage, ``blocks.AttentionDownsample``, in five launches.

1. The strided convolution, and products: q of that, k and v of x.
2. ``csrc/cuda/blocks/attention_downsample.h``: all between those and u.
3. A product: proj(u) + conv(x), both summed in the same registers.
"""

from __future__ import annotations

import torch

from effv2_kernels import _cuda, blocks
from effv2_kernels.cuda.depthwise import depthwise
from effv2_kernels.cuda.launch import Launch, shapes
from effv2_kernels.cuda.packing import bias_of_product, by_tap, right_factor, values_factor
from effv2_kernels.cuda.product import joined_product, pointwise_product
from effv2_kernels.gpu.attention_downsample import PackedAttentionDownsample
from effv2_kernels.gpu.launch import FeatureMap, blocks_of


class AttentionDownsample(PackedAttentionDownsample):
    """``blocks.AttentionDownsample`` with its weights in the kernels' layouts."""

    def __init__(
        self, block: blocks.AttentionDownsample, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        super().__init__(block, dtype, device)
        self.q, self.q_bias = (
            right_factor(block.q.weight, dtype, device),
            bias_of_product(block.q.bias, device),
        )
        self.kv = right_factor(block.kv.weight, dtype, device)
        self.kv_bias = bias_of_product(block.kv.bias, device)
        both = torch.cat([values_factor(block.proj.weight), by_tap(block.conv.weight)], 1)
        self.joined = right_factor(both, dtype, device)
        self.joined_bias = bias_of_product(block.proj.bias + block.conv.bias, device)
        self.outputs = both.shape[0]

    def plan(self, x: FeatureMap, precision: str) -> list[Launch]:
        height, width = blocks_of(x.height, 2), blocks_of(x.width, 2)
        keys, values = self.heads * self.key_dim, self.heads * self.value_dim
        every_other = depthwise(x, self.dw, self.dw_bias)
        to_q = pointwise_product(every_other.output, self.q, self.q_bias, keys)
        to_kv = pointwise_product(x, self.kv, self.kv_bias, keys + values)
        u = x.like(values, height, width)
        bias, dense = self.bias.of(x.height, x.width)
        queries, tokens = height * width, x.height * x.width
        attend = Launch(
            kind="attention_downsample",
            dtype=x.dtype,
            arguments={
                "images": x.images, "height": x.height, "width": x.width,
                "query_height": height, "query_width": width, "dense": int(dense),
                "activation": self.activation, "q": to_q.output, "kv": to_kv.output, "bias": bias,
                "local": self.local, "local_bias": self.local_bias, "u": u,
            },
            tiles=shapes(_cuda.SHAPES["attention_downsample"]),
            output=u,
            macs=x.images * queries * self.heads
            * (tokens * (self.key_dim + self.value_dim) + 9 * self.value_dim),
        )  # fmt: skip
        join = joined_product(u, x, self.joined, self.joined_bias, self.outputs, stride=2)
        return [every_other, to_q, to_kv, attend, join]
