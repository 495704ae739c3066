"""The step to the last stage: strided attention beside a convolution (paper section 3.2, dual path)."""

from __future__ import annotations

import torch
from torch import Tensor

from effv2_kernels import blocks
from effv2_kernels.reference.activation import activate
from effv2_kernels.reference.attention_bias import bias_for
from effv2_kernels.reference.layers import by_head, conv, weighted_values


def attention_downsample(x: Tensor, block: blocks.AttentionDownsample) -> Tensor:
    """The equation of ``blocks.AttentionDownsample``. x: (N, channels, H, W), any floating dtype.

    Raises ResolutionError where the bias does not fit the map and is not to be resized.
    """
    q_map = conv(conv(x, block.dw, 2), block.q)
    keys, values = block.heads * block.key_dim, block.heads * block.value_dim
    k_map, v_map = torch.split(conv(x, block.kv), [keys, values], dim=1)
    q, k = by_head(q_map, block.heads), by_head(k_map, block.heads)
    grid = (x.shape[2], x.shape[3])
    bias = bias_for(block.bias.to(x), grid, query_stride=2, resize=block.resize_bias)
    p = (q.transpose(2, 3) @ k + bias).softmax(-1)
    u = weighted_values(p, v_map, (q_map.shape[2], q_map.shape[3])) + conv(v_map, block.local, 2)
    return conv(activate(u, block.activation), block.proj) + conv(x, block.conv, 2)
