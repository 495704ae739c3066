"""Folded weights in the layouts that the CUDA kernels read; see ``csrc/cuda/tiles/fragments.h``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Of a warp's product: what columns and depth are padded to.
_COLUMNS = 32
_DEPTH = 16


def right_factor(weight: Tensor, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """(out, in) -> (out, in), both padded with zeros; 32 rows in the order in which a lane gets columns."""
    outputs, depth = weight.shape
    padded = F.pad(weight, (0, -depth % _DEPTH, 0, -outputs % _COLUMNS))
    # Row 8 j + 2 t + i is column 8 t + 2 j + i.
    order = padded.view(-1, 4, 4, 2, padded.shape[1]).transpose(1, 2)
    return order.reshape(padded.shape).to(device, dtype).contiguous()


def window_factor(weight: Tensor, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """(out, in, k, k) -> (out, k * k * in), padded and ordered like ``right_factor``."""
    return right_factor(by_tap(weight), dtype, device)


def by_tap(weight: Tensor) -> Tensor:
    """(out, in, k, k) -> (out, k * k * in), the channels of a tap beside each other."""
    return weight.permute(0, 2, 3, 1).flatten(1)


def values_factor(weight: Tensor) -> Tensor:
    """The columns of (out, values) in the order in which the attentions store their values.

    Of each 32, place 8 t + 2 j + i holds value 8 j + 2 t + i; see ``csrc/cuda/tiles/heads.h``.
    """
    return weight.view(weight.shape[0], -1, 4, 4, 2).transpose(2, 3).reshape(weight.shape)


def image_factor(weight: Tensor, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """(out, 3, 3, 3) -> (out, 32): three rows of nine values and a zero each, and two zeros."""
    rows = F.pad(weight.permute(0, 2, 3, 1).flatten(2), (0, 1)).flatten(1)
    return right_factor(rows, dtype, device)


def bias_of_product(bias: Tensor, device: torch.device | str) -> Tensor:
    """(out,) -> (out,) float32, padded to whole products."""
    return F.pad(bias, (0, -bias.shape[0] % _COLUMNS)).to(device, torch.float32).contiguous()
