"""Folded weights in the layouts that the kernels read: matrices (in, out) in the network's dtype, taps in
float16 or float32, the rest in float32."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from effv2_kernels.gpu.alternatives import Alternative
from effv2_kernels.gpu.launch import FeatureMap, Launch, blocks_of
from effv2_kernels.reference.attention_bias import bias_for

_LOG2_E = math.log2(math.e)

# Biases of maps with at most so many values per head are looked up ready gathered, larger ones by distance.
_DENSE_VALUES = 128 * 128

# Grids whose bias a table keeps ready; plans hold on to those that they use.
_MAX_GRIDS = 16


class Packed(ABC):
    """A block with its weights on a device, ready to be planned for any size of its input.

    reads_any_layout: whether its input may have strides; that of others is dense.
    """

    reads_any_layout: bool = False

    @abstractmethod
    def plan(self, x: FeatureMap, precision: str) -> Sequence[Launch]:
        """The launches for x, in order; the output of the last one is the block's.

        precision: of products in float32, "ieee" or "tf32". Raises ResolutionError where an attention bias
        does not fit, and UnavailableError for maps that the kernels cannot take.
        """

    def alternatives(self, x: FeatureMap, precision: str) -> Sequence[Alternative]:
        """All ways to compute it for x; the first one is ``plan``, to be used unmeasured. Raises as that."""
        return [Alternative.of(self.plan(x, precision))]

    @property
    def nbytes(self) -> int:
        """Of the packed weights."""
        return sum(v.nbytes for v in vars(self).values() if isinstance(v, Tensor))


def matrix(weight: Tensor, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """(out, in) -> (in, out)."""
    return weight.t().contiguous().to(device, dtype)


def conv_matrix(weight: Tensor, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """(out, in, 3, 3) -> (9, in, out), and any other size of kernel alike."""
    return weight.flatten(2).permute(2, 1, 0).contiguous().to(device, dtype)


def image_matrix(weight: Tensor, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """(out, in, 3, 3) -> (in * 9, out), float16 for networks in float16 and else float32."""
    return matrix(weight.flatten(1), half_or_float(dtype), device)


def half_or_float(dtype: torch.dtype) -> torch.dtype:
    """In what networks of ``dtype`` multiply on the ordinary units, which take two float16 at once."""
    return dtype if dtype == torch.float16 else torch.float32


def taps(weight: Tensor, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """(channels, 3, 3) -> (9, channels), float16 for networks in float16 and else float32."""
    return weight.reshape(-1, 9).t().contiguous().to(device, half_or_float(dtype))


def vector(bias: Tensor, device: torch.device | str) -> Tensor:
    """As it is, in float32, at an address that is a multiple of 16 bytes, as kernels are compiled for."""
    made = bias.to(device, torch.float32).contiguous()
    return made.clone() if made.storage_offset() % 4 else made


def by_position(table: Tensor, query_stride: int) -> Tensor:
    """``attention_bias.gather``: (heads, rows, cols) by distance -> (heads, queries, keys).

    By windows on the table and its mirror image, not by an index: Torch's compiler computes constants ahead
    where weights are frozen, but nothing that begins with torch.arange.
    """
    for axis in (1, 2):
        size = table.shape[axis]
        rest = (0, 0) * (table.ndim - 1 - axis)
        left = table.flip(axis).narrow(axis, 0, size - 1)
        by_signed_distance = F.pad(left, (*rest, 0, size)) + F.pad(table, (*rest, size - 1, 0))
        # The last window is that of the first query; its keys become the last axis.
        table = by_signed_distance.unfold(axis, size, 1).flip(axis)
    return table[:, ::query_stride, ::query_stride].flatten(3).flatten(1, 2)


class BiasTable:
    """The attention bias of any grid of keys, times log2(e) because kernels take exp2.

    table: (heads, rows, cols), by distance; see ``effv2_kernels.reference.attention_bias``.
    """

    def __init__(self, table: Tensor, query_stride: int, resize: bool, device: torch.device | str) -> None:
        self._table = table.double()
        self._query_stride, self._resize, self._device = query_stride, resize, device
        self._made: dict[tuple[int, int], tuple[Tensor, bool]] = {}

    def of(self, height: int, width: int) -> tuple[Tensor, bool]:
        """(bias, whether it is dense): (heads, queries, keys) float32, or the table by distance.

        Raises ResolutionError where the table was made for another grid and is not to be resized.
        """
        grid = (height, width)
        if grid not in self._made:
            stride = self._query_stride
            values = height * width * blocks_of(height, stride) * blocks_of(width, stride)
            fits = tuple(self._table.shape[1:]) == grid
            dense = values <= _DENSE_VALUES or not fits
            if not dense:
                made = self._table
            elif fits:
                made = by_position(self._table, stride)
            else:
                made = bias_for(self._table, grid, query_stride=stride, resize=self._resize)
            if len(self._made) >= _MAX_GRIDS:
                self._made.clear()
            self._made[grid] = ((made * _LOG2_E).float().contiguous().to(self._device), dense)
        return self._made[grid]
