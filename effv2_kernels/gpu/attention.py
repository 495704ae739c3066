"""What backends keep alike of ``blocks.Attention``: all but its products."""

from __future__ import annotations

import math

import torch

from effv2_kernels import blocks
from effv2_kernels.gpu.packing import BiasTable, Packed, taps, vector


class PackedAttention(Packed):
    """The convolutions, the mixing of heads and the bias; a backend adds its products and its plan."""

    def __init__(self, block: blocks.Attention, dtype: torch.dtype, device: torch.device | str) -> None:
        # Or it was refused, see the backends' ``kernels``.
        assert block.mix1_weight is not None
        assert block.mix2 is not None
        assert block.local is not None
        assert block.bias is not None
        self.dw = self.dw_bias = None
        if block.dw is not None:
            self.dw, self.dw_bias = taps(block.dw.weight, dtype, device), vector(block.dw.bias, device)
        self.mix1 = vector(block.mix1_weight * math.log2(math.e), device)
        self.bias = BiasTable(block.bias, 1, block.resize_bias, device)
        self.mix2, self.mix2_bias = vector(block.mix2.weight, device), vector(block.mix2.bias, device)
        self.local, self.local_bias = (
            taps(block.local.weight, dtype, device),
            vector(block.local.bias, device),
        )
        self.heads, self.key_dim, self.value_dim = block.heads, block.key_dim, block.value_dim
        self.activation = block.activation
