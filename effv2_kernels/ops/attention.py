"""``torch.ops.effv2.attention(x, qkv_weight, …, heads, key_dim, value_dim, …)``: ``blocks.Attention``.

The arguments are the fields of the block in declared order, with their defaults.
x: (N, channels, H, W), any strides; float32, on a GPU float16 and bfloat16 as well. The weights are float32
and where x is. Returns the shape and dtype of x, channels_last.
Raises ResolutionError where the bias does not fit the map and ``resize_bias`` is False.
"""

from typing import Any

from effv2_kernels import blocks
from effv2_kernels.ops.registration import register


def output_size(height: Any, width: Any) -> tuple[Any, Any]:
    return height, width


register(blocks.Attention, output_size)
