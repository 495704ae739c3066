"""What backends keep alike of ``blocks.AttentionDownsample``: all but its products."""

from __future__ import annotations

import torch

from effv2_kernels import blocks
from effv2_kernels.gpu.packing import BiasTable, Packed, taps, vector


class PackedAttentionDownsample(Packed):
    """The depthwise convolutions and the bias; a backend adds its products and its plan."""

    def __init__(
        self, block: blocks.AttentionDownsample, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        self.dw, self.dw_bias = taps(block.dw.weight, dtype, device), vector(block.dw.bias, device)
        self.local, self.local_bias = (
            taps(block.local.weight, dtype, device),
            vector(block.local.bias, device),
        )
        self.bias = BiasTable(block.bias, 2, block.resize_bias, device)
        self.heads, self.key_dim, self.value_dim = block.heads, block.key_dim, block.value_dim
        self.activation = block.activation
