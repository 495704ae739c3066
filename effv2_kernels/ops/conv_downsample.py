"""``torch.ops.effv2.conv_downsample(x, weight, bias)``: ``blocks.ConvDownsample``.

x: (N, in, H, W) float32, any strides; returns (N, out, ceil(H / 2), ceil(W / 2)), channels_last.
"""

from typing import Any

from effv2_kernels import blocks
from effv2_kernels.ops.registration import register


def output_size(height: Any, width: Any) -> tuple[Any, Any]:
    return (height + 1) // 2, (width + 1) // 2


register(blocks.ConvDownsample, output_size)
