"""What follows from the declaration of a block: its fields, their shapes, and its sizes by name.

Blocks are dataclasses (``effv2_kernels.blocks``) whose tensors are annotated with the names of their sizes. A
name is one size for the whole block. ``in`` is the channels of the input and ``out`` those of the output,
where they differ; ``heads``, ``keys``, ``values``, ``kv`` and ``qkv`` are channels that follow from the
options ``heads``, ``key_dim`` and ``value_dim``; all others are what the tensors say.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch

from effv2_kernels.errors import ModelError

if TYPE_CHECKING:
    from effv2_kernels.blocks import Block


@dataclass(frozen=True, init=False)
class Shape:
    """The sizes of a tensor, by name or number; only_if: the option and its value that the tensor is for."""

    sizes: tuple[str | int, ...]
    only_if: tuple[str, int] | None

    def __init__(self, *sizes: str | int, only_if: tuple[str, int] | None = None) -> None:
        object.__setattr__(self, "sizes", sizes)
        object.__setattr__(self, "only_if", only_if)

    def belongs(self, options: dict[str, int]) -> bool:
        """Whether a block with these options has the tensor."""
        return self.only_if is None or options.get(self.only_if[0]) == self.only_if[1]


_declared: dict[str, dict[str, Shape]] = {}  # by kind of block


def declared(block_type: type[Block]) -> dict[str, Shape]:
    """The shape of every tensor of a kind of block, by field name, in the order of declaration."""
    found = _declared.get(block_type.kind)
    if found is None:
        found = _declared[block_type.kind] = {
            field.name: annotation
            for field in fields(block_type)
            for annotation in getattr(field.type, "__metadata__", ())
            if isinstance(annotation, Shape)
        }
    return found


def plain_type(annotation: Any) -> Any:
    """The type of a field, without the shape that it is annotated with."""
    return getattr(annotation, "__origin__", annotation)


def tensor_shapes(
    block_type: type[Block], sizes: dict[str, int], options: dict[str, int]
) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a block with these sizes and options, by field name."""
    known = {**sizes, **_option_sizes(block_type.kind, options)}
    return {
        name: tuple(s if isinstance(s, int) else known[s] for s in shape.sizes)
        for name, shape in declared(block_type).items()
        if shape.belongs(options)
    }


def block_sizes(block: Block) -> dict[str, int]:
    """The sizes of a block by name: ``in``, ``out``, ``hidden`` and so on.

    Raises ModelError where a tensor is missing, not float32, or has a shape that does not fit the others.
    """
    options = block.options()
    sizes = _option_sizes(block.kind, options)
    tensors = block.tensors()
    for name, declaration in declared(type(block)).items():
        tensor, symbols = tensors.get(name), declaration.sizes
        if tensor is None:
            if not declaration.belongs(options):
                continue
            raise ModelError(f"block {block.kind}: {name} is missing; expected a tensor {_shown(symbols)}.")
        if tensor.dtype != torch.float32:
            raise ModelError(f"block {block.kind}: {name} is {tensor.dtype}; expected torch.float32.")
        shape = tuple(tensor.shape)
        fits = len(shape) == len(symbols) and min(shape, default=1) > 0
        if fits:
            for symbol, size in zip(symbols, shape, strict=True):
                fits &= size == (symbol if isinstance(symbol, int) else sizes.setdefault(symbol, size))
        if not fits:
            known = {s: sizes[s] for s in symbols if isinstance(s, str) and s in sizes}
            raise ModelError(
                f"block {block.kind}: {name} has shape {shape}, expected {_shown(symbols)} "
                f"with {', '.join(f'{s} = {size}' for s, size in known.items()) or 'positive sizes'}."
            )
    sizes.setdefault("out", sizes["in"])
    return sizes


def _option_sizes(kind: str, options: dict[str, int]) -> dict[str, int]:
    if "heads" not in options:
        return {}
    heads, key_dim, value_dim = options["heads"], options["key_dim"], options["value_dim"]
    if min(heads, key_dim, value_dim) < 1 or options.get("stride", 1) not in (1, 2):
        raise ModelError(
            f"block {kind}: heads, key_dim and value_dim must be positive and stride 1 or 2; "
            f"got {', '.join(f'{name} = {value}' for name, value in options.items())}."
        )
    keys, values = heads * key_dim, heads * value_dim
    return {
        "heads": heads,
        "keys": keys,
        "values": values,
        "kv": keys + values,
        "qkv": 2 * keys + values,
    }


def _shown(symbols: tuple[str | int, ...]) -> str:
    return f"({', '.join(map(str, symbols))}{',' if len(symbols) == 1 else ''})"
