"""The attention bias: one value for each head and distance between a query and a key.

A table (heads, rows, cols) holds bias[h, |row_i - row_j|, |col_i - col_j|] for the grid of keys that it
was made for. Queries stand on every position of that grid, or on every second row and column.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from effv2_kernels.errors import ResolutionError


def distance_index(rows: int, cols: int, query_stride: int, device: torch.device | None = None) -> Tensor:
    """(queries, keys) int64: |row_i - row_j| * cols + |col_i - col_j|, positions in row-major order."""
    row = torch.arange(rows, device=device)
    col = torch.arange(cols, device=device)
    rows_apart = (row[::query_stride, None] - row).abs()  # (query rows, rows)
    cols_apart = (col[::query_stride, None] - col).abs()
    index = rows_apart[:, None, :, None] * cols + cols_apart[None, :, None, :]
    return index.reshape(rows_apart.shape[0] * cols_apart.shape[0], rows * cols)


def gather(table: Tensor, query_stride: int = 1) -> Tensor:
    """table: (heads, rows, cols) -> (heads, queries, keys) of the grid that the table was made for."""
    heads, rows, cols = table.shape
    return table.reshape(heads, -1)[:, distance_index(rows, cols, query_stride, table.device)]


def bias_for(table: Tensor, grid: tuple[int, int], *, query_stride: int = 1, resize: bool = False) -> Tensor:
    """The bias to add to the logits of a map of ``grid`` (rows, cols) keys: (heads, queries, keys).

    With ``resize`` the gathered bias is taken as an image of queries x keys and resized bicubically
    (align_corners=False), as the official detection and segmentation backbones do. Otherwise a grid
    other than the table's raises ResolutionError.
    """
    gathered = gather(table, query_stride)
    if tuple(table.shape[1:]) == tuple(grid):
        return gathered
    if not resize:
        rows, cols = table.shape[1:]
        raise ResolutionError(
            f"the attention bias was made for a map of {rows}x{cols} tokens, but this input gives "
            f"{grid[0]}x{grid[1]}. Give images of the size that the model was made for."
        )
    queries = -(-grid[0] // query_stride) * -(-grid[1] // query_stride)
    size = (queries, grid[0] * grid[1])
    return F.interpolate(gathered[None], size=size, mode="bicubic", align_corners=False)[0]
