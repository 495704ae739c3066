"""What an engine takes as its input, and what it says of anything else; the same on every device."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from effv2_kernels import blocks
from effv2_kernels.errors import InputError, ResolutionError


class Sizes(NamedTuple):
    """Images that all attention biases of a network fit."""

    rows: tuple[int, int]  # least and most
    columns: tuple[int, int]
    source: str = ""  # of the network, see blocks.Network


# What else images come as, by the name of its type.
_HINTS = {
    "ndarray": " Convert with torch.from_numpy(x).",
    "Proxy": " torch.fx.symbolic_trace cannot see into an optimised model: trace the one that was optimised, "
    "or use make_fx or torch.export.",
}
_CAST = {torch.float32: "float", torch.float16: "half", torch.bfloat16: "bfloat16"}


def whole_number(value: Any, what: str) -> int:
    """``value`` as an integer. Raises InputError where it is none; what: for its message."""
    try:
        return operator.index(value)
    except TypeError as error:
        raise InputError(f"{what} must be a whole number, but got {value!r}.") from error


def rows_and_columns(size: Any, what: str) -> tuple[int, int]:
    """Of one number for both, or of two. Raises InputError for anything else; what: for its message."""
    several = isinstance(size, Iterable) and not isinstance(size, str)
    pair = tuple(size) if several else (size, size)
    if len(pair) != 2:
        raise InputError(f"{what} must be rows and columns, or one number for both, but got {size!r}.")
    return whole_number(pair[0], f"rows of {what}"), whole_number(pair[1], f"columns of {what}")


def check_images(x: object) -> None:
    """Raise InputError unless x is a tensor whose memory is its own and laid out by strides."""
    if not isinstance(x, Tensor):
        raise InputError(
            f"expected images as a torch.Tensor (N, C, H, W), but got {type(x).__name__}."
            + _HINTS.get(type(x).__name__, "")
        )
    if x.is_nested:
        raise InputError(
            "expected images as one tensor (N, C, H, W), but got a nested tensor. Resize the images to one "
            "size and use torch.stack, or call the model with one image at a time."
        )


def check_kind(x: Tensor, channels: int, dtype: torch.dtype) -> None:
    """Raise InputError unless x is a (N, channels, H, W) of ``dtype``, by what a compiler knows of it."""
    if x.ndim != 4:
        raise InputError(
            f"expected images of rank 4 (N, {channels}, H, W), but got rank {x.ndim}: {tuple(x.shape)}."
            + (" Add the batch dimension with x.unsqueeze(0)." if x.ndim == 3 else "")
        )
    if x.shape[1] != channels:
        raise InputError(
            f"expected {channels} channels, (N, {channels}, H, W), but got {x.shape[1]}: {tuple(x.shape)}."
            + (" The layout looks like (N, H, W, C): use x.permute(0, 3, 1, 2)." * (x.shape[3] == channels))
        )
    if x.dtype != dtype:
        raise InputError(
            f"expected {dtype}, but got {x.dtype}. Convert with x.{_CAST[dtype]}(); the precision is chosen "
            f"with optimize(model, dtype=...), never by the input."
        )


def check_input(x: Tensor, channels: int, dtype: torch.dtype, device: torch.device) -> None:
    """Raise InputError unless x is a dense (N, channels, H, W) of ``dtype`` on ``device``, and not empty."""
    check_kind(x, channels, dtype)
    if 0 in x.shape:
        empty = "batch is empty" if x.shape[0] == 0 else "images have no pixels"
        raise InputError(f"the {empty}: {tuple(x.shape)}. Give at least one image of at least one pixel.")
    if x.device != device:
        how = "x.cpu()" if device.type == "cpu" else f"x.to('{device}')"
        model = "" if x.is_meta else f", or the model with model.to('{x.device}')"
        raise InputError(
            f"expected a tensor on the {device}, but got one on {x.device}. Move it with {how}{model}."
        )
    if x.layout != torch.strided:
        raise InputError(
            f"expected a dense tensor, but got the layout {x.layout}. Convert with x.to_dense()."
        )


def check_memory(x: Tensor) -> None:
    """Raise InputError where a dense tensor reads memory that it does not have.

    Frameworks that shard or offload weights free a tensor's memory and leave it its shape.
    """
    extent = x.numel()
    if not (x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)):
        extent = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    held = x.untyped_storage().nbytes()
    if held < (x.storage_offset() + extent) * x.element_size() or not x.data_ptr():
        raise InputError(
            f"a tensor {tuple(x.shape)} of strides {x.stride()} reads beyond the {held} bytes that it holds: "
            f"its memory was freed or never made. Give one that holds its values."
        )


def fitting_sizes(network: blocks.Network) -> Sizes | None:
    """The images that all attention biases fit; None is any."""
    low, high = [1, 1], [0, 0]
    step = 1  # pixels of the image for one row of the map at hand
    for block in network.blocks:
        grid = block.grid()
        if grid is not None:
            pixels = step * grid[1]
            for axis, size in enumerate(grid[0]):
                low[axis] = max(low[axis], (size - 1) * pixels + 1)
                high[axis] = min(high[axis] or size * pixels, size * pixels)
        step *= block.step or 1
    return Sizes((low[0], high[0]), (low[1], high[1]), network.source) if high[0] else None


def misfit(sizes: Sizes, height: int, width: int) -> ResolutionError:
    """The error for images of height x width where the biases fit ``sizes`` alone."""
    from effv2_kernels.families import advice

    rows, cols, source = sizes
    return ResolutionError(
        f"the attention biases of this model fit inputs of {rows[0]}-{rows[1]} rows by "
        f"{cols[0]}-{cols[1]} columns, but this one is {height}x{width}. "
        f"Resize it{advice(source, height, width)}."
    )
