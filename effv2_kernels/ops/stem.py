"""``torch.ops.effv2.stem(x, conv1_weight, conv1_bias, conv2_weight, conv2_bias)``: ``blocks.Stem``.

x: (N, in, H, W), any strides; float32, on a GPU float16 and bfloat16 as well. The weights are float32 and
where x is. Returns (N, out, ceil(H / 4), ceil(W / 4)) in the dtype of x, channels_last.
"""

from typing import Any

from effv2_kernels import blocks
from effv2_kernels.ops.registration import register


def output_size(height: Any, width: Any) -> tuple[Any, Any]:
    return (height + 3) // 4, (width + 3) // 4


register(blocks.Stem, output_size)
