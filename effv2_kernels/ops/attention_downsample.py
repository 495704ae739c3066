"""``torch.ops.effv2.attention_downsample(x, dw_weight, …, heads, key_dim, value_dim, resize_bias)``.

The arguments are the fields of ``blocks.AttentionDownsample`` in declared order, with their defaults.
x: (N, channels, H, W), any strides; float32, on a GPU float16 and bfloat16 as well. The weights are float32
and where x is. Returns (N, out, ceil(H / 2), ceil(W / 2)) in the dtype of x, channels_last.
Raises ResolutionError where the bias does not fit the map and ``resize_bias`` is False.
"""

from typing import Any

from effv2_kernels import blocks
from effv2_kernels.ops.registration import register


def output_size(height: Any, width: Any) -> tuple[Any, Any]:
    return (height + 1) // 2, (width + 1) // 2


register(blocks.AttentionDownsample, output_size)
