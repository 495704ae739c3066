"""``torch.ops.effv2.ffn(x, fc1_weight, fc1_bias, dw_weight, dw_bias, fc2_weight, fc2_bias)``: ``blocks.FFN``.

x: (N, channels, H, W), any strides; float32, on a GPU float16 and bfloat16 as well. The weights are float32
and where x is. Returns the shape and dtype of x, channels_last.
"""

from typing import Any

from effv2_kernels import blocks
from effv2_kernels.ops.registration import register


def output_size(height: Any, width: Any) -> tuple[Any, Any]:
    return height, width


register(blocks.FFN, output_size)
