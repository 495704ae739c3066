"""Folded weights in the layouts that the CUDA kernels read; see ``csrc/cuda/tiles/fragments.h``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Of a product of a warp: what its columns and its depth are padded to.
COLUMNS = 32
DEPTH = 16


def right_factor(weight: Tensor, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """(out, in) -> (out, in), both padded with zeros, rows of 32 in the order in which a lane gets columns."""
    outputs, depth = weight.shape
    padded = F.pad(weight, (0, -depth % DEPTH, 0, -outputs % COLUMNS))
    # Row 8 j + 2 t + i is column 8 t + 2 j + i.
    order = padded.view(-1, 4, 4, 2, padded.shape[1]).transpose(1, 2)
    return order.reshape(padded.shape).to(device, dtype).contiguous()


def window_factor(weight: Tensor, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """(out, in, k, k) -> (out, k * k * in), padded and ordered like ``right_factor``."""
    return right_factor(weight.permute(0, 2, 3, 1).flatten(1), dtype, device)


def bias_of(bias: Tensor, device: torch.device | str) -> Tensor:
    """(out,) -> (out,) float32, padded to whole products."""
    return F.pad(bias, (0, -bias.shape[0] % COLUMNS)).to(device, torch.float32).contiguous()


def taps_of(weight: Tensor, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """(channels, 3, 3) -> (9, channels): float16 for networks in float16, float32 for bfloat16."""
    tap = torch.float16 if dtype == torch.float16 else torch.float32
    return weight.flatten(1).t().to(device, tap).contiguous()
