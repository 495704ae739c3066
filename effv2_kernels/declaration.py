"""What follows from the declaration of a block: its tensors and options, their shapes, and its sizes by name.

Blocks are dataclasses (``effv2_kernels.blocks``) made of layers, bare tensors and options; layers and tensors
are annotated with the names of their sizes. A name is one size for the whole block. ``in`` is the channels
of the input and ``out`` those of the output, where they differ; ``heads``, ``keys``, ``values``, ``kv`` and
``qkv`` are channels that follow from the options ``heads``, ``key_dim`` and ``value_dim``; all others are
what the tensors say.

Outside, in ops, state dicts, files and C++, a block is a flat list of arguments: the layer ``fc1`` is
``fc1_weight`` and ``fc1_bias``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, get_args

import torch
from torch import Tensor

from effv2_kernels.errors import ModelError

if TYPE_CHECKING:
    from effv2_kernels.blocks import Block

    SomeBlock = TypeVar("SomeBlock", bound=Block)


@dataclass(frozen=True, eq=False)
class Layer:
    """A linear map or convolution, and what is added to each of its outputs.

    weight: (outputs, inputs) of a 1x1 convolution or linear map, (channels, k, k) of a depthwise one,
    (outputs, inputs, k, k) of any other. bias: (outputs,).
    """

    weight: Tensor
    bias: Tensor


# What C++ counts in an int with room to spare: of a size, and of the values of a tensor.
_LARGEST = 1 << 20
_MOST_VALUES = 1 << 28

# What a block can apply behind its layers; see ``effv2_kernels.reference.activation``.
ACTIVATIONS = ("none", "gelu", "relu", "relu6", "silu", "hardswish")


@dataclass(frozen=True, init=False)
class Choice:
    """The values that an option may have."""

    values: tuple[int | str, ...]

    def __init__(self, *values: int | str) -> None:
        object.__setattr__(self, "values", values)


@dataclass(frozen=True, init=False)
class Shape:
    """The sizes of a tensor, or of a layer's weight, by name or number.

    only_if: the option and its value that it is for. name: what it is called outside, where that is not the
    name of its field; a layer called "" is ``weight`` and ``bias``.
    """

    sizes: tuple[str | int, ...]
    only_if: tuple[str, int] | None
    name: str | None

    def __init__(
        self, *sizes: str | int, only_if: tuple[str, int] | None = None, name: str | None = None
    ) -> None:
        object.__setattr__(self, "sizes", sizes)
        object.__setattr__(self, "only_if", only_if)
        object.__setattr__(self, "name", name)

    def belongs(self, options: Mapping[str, Any]) -> bool:
        """Whether a block with these options has the tensor."""
        return self.only_if is None or options.get(self.only_if[0]) == self.only_if[1]


class Argument(NamedTuple):
    """One of the values that a block is made of: a tensor or an option."""

    name: str
    field: str  # of the dataclass
    part: str  # "weight" or "bias" where the field is a layer, else ""
    type: Any  # Tensor, int, bool, str
    optional: bool  # it may be None
    default: Any  # MISSING where there is none
    shape: Shape | None  # of a tensor
    choice: Choice | None = None  # of an option

    @property
    def operand(self) -> bool:
        """Whether it is what products multiply maps with: the weight of a layer that sums over channels.

        A depthwise one sums over none, and talking heads are mixed in float32 whatever products multiply.
        """
        if self.part != "weight" or self.shape is None:
            return False
        outputs, inputs, *window = self.shape.sizes
        return len(window) != 1 and (outputs, inputs) != ("heads", "heads")

    def of(self, block: Block) -> Any:
        """Its value in a block."""
        value = getattr(block, self.field)
        return getattr(value, self.part) if self.part and value is not None else value


_arguments: dict[str, tuple[Argument, ...]] = {}  # by kind of block


def arguments(block_type: type[Block]) -> tuple[Argument, ...]:
    """What a kind of block is made of, in the order of declaration."""
    found = _arguments.get(block_type.kind)
    if found is None:
        found = _arguments[block_type.kind] = tuple(_arguments_of(block_type))
    return found


def _arguments_of(block_type: type[Block]) -> list[Argument]:
    made = []
    for field in fields(block_type):
        annotation: Any = field.type
        (said,) = getattr(annotation, "__metadata__", (None,))
        shape = said if isinstance(said, Shape) else None
        choice = said if isinstance(said, Choice) else None
        plain = getattr(annotation, "__origin__", annotation)
        alternatives = get_args(plain) or (plain,)
        kind, optional = alternatives[0], len(alternatives) > 1
        name = field.name if shape is None or shape.name is None else shape.name
        if kind is Layer:
            assert shape is not None
            prefix = f"{name}_" if name else ""
            for part, sizes in (("weight", shape.sizes), ("bias", shape.sizes[:1])):
                own = Shape(*sizes, only_if=shape.only_if)
                made.append(Argument(prefix + part, field.name, part, Tensor, optional, field.default, own))
        else:
            made.append(Argument(name, field.name, "", kind, optional, field.default, shape, choice))
    return made


def assemble(block_type: type[SomeBlock], values: Mapping[str, Any]) -> SomeBlock:
    """The block that is made of these tensors and options, by name; those left out have their defaults.

    Raises ModelError where a layer has only one of its tensors, or one that it needs is left out.
    """
    made: dict[str, Any] = {}
    layers: dict[str, list[Argument]] = {}
    for a in arguments(block_type):
        if a.part:
            layers.setdefault(a.field, []).append(a)
        elif a.name in values:
            # Outside, a flag may be an integer.
            made[a.field] = bool(values[a.name]) if a.type is bool else values[a.name]
        elif a.optional and a.default is MISSING:
            made[a.field] = None
    for field, parts in layers.items():
        missing = [a for a in parts if values.get(a.name) is None]
        if not missing:
            made[field] = Layer(*(values[a.name] for a in parts))
        elif missing == parts and parts[0].optional:
            made[field] = None
        else:
            raise _missing(block_type, missing[0])
    return block_type(**made)


def changed_options(block: Block) -> dict[str, int | str]:
    """The options of a block that have another value than their default, by name."""
    return {
        a.name: value
        for a, value in zip(_options(type(block)), block.options().values(), strict=True)
        if a.default is MISSING or value != a.default
    }


def _options(block_type: type[Block]) -> list[Argument]:
    return [a for a in arguments(block_type) if a.shape is None]


def tensor_shapes(
    block_type: type[Block],
    sizes: Mapping[str, int],
    options: Mapping[str, int | str],
    without: Collection[str] = (),
) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a block with these sizes and options, by name.

    without: the fields that are absent, of those that may be.
    """
    known = {"out": sizes["in"], **sizes, **_option_sizes(block_type, options)}
    return {
        a.name: tuple(s if isinstance(s, int) else known[s] for s in a.shape.sizes)
        for a in arguments(block_type)
        if a.shape is not None and a.field not in without and a.shape.belongs(options)
    }


def block_sizes(block: Block) -> dict[str, int]:
    """The sizes of a block by name: ``in``, ``out``, ``hidden`` and so on.

    Raises ModelError where a tensor is missing, not float32, or has a shape that does not fit the others, and
    for an option that the block does not have.
    """
    options = block.options()
    sizes = _option_sizes(type(block), options)
    for a in arguments(type(block)):
        if a.shape is None:
            continue
        tensor, symbols = a.of(block), a.shape.sizes
        if tensor is None:
            if a.optional and not (a.shape.only_if and a.shape.belongs(options)):
                continue
            raise _missing(type(block), a)
        if not a.shape.belongs(options):
            assert a.shape.only_if is not None
            option, value = a.shape.only_if
            raise ModelError(
                f"block {block.kind}: {a.name} is for {option} = {value}, not {options[option]}."
            )
        if tensor.dtype != torch.float32:
            raise ModelError(f"block {block.kind}: {a.name} is {tensor.dtype}; expected torch.float32.")
        shape = tuple(tensor.shape)
        fits = len(shape) == len(symbols) and min(shape, default=1) > 0
        if fits:
            for symbol, size in zip(symbols, shape, strict=True):
                fits &= size == (symbol if isinstance(symbol, int) else sizes.setdefault(symbol, size))
        if fits and (max(shape, default=1) > _LARGEST or prod(shape) > _MOST_VALUES):
            raise ModelError(f"block {block.kind}: {a.name} has shape {shape}, which is too large.")
        if not fits:
            known = {s: sizes[s] for s in symbols if isinstance(s, str) and s in sizes}
            raise ModelError(
                f"block {block.kind}: {a.name} has shape {shape}, expected {_shown(symbols)} "
                f"with {', '.join(f'{s} = {size}' for s, size in known.items()) or 'positive sizes'}."
            )
    if "in" not in sizes:  # no layer widens the input
        sizes["in"] = sizes["hidden"]
    sizes.setdefault("out", sizes["in"])
    misfit = block.misfit(sizes)
    if misfit is not None:
        raise ModelError(f"block {block.kind}: {misfit}.")
    return sizes


def _missing(block_type: type[Block], argument: Argument) -> ModelError:
    assert argument.shape is not None
    return ModelError(
        f"block {block_type.kind}: {argument.name} is missing; expected a tensor "
        f"{_shown(argument.shape.sizes)}."
    )


def _option_sizes(block_type: type[Block], options: Mapping[str, int | str]) -> dict[str, int]:
    """The sizes that follow from the options. Raises ModelError for values that an option cannot have."""
    for a in _options(block_type):
        given = options.get(a.name, a.default)
        if a.choice is not None and given not in a.choice.values:
            raise ModelError(
                f"block {block_type.kind}: {a.name} is {given!r}; expected {one_of(a.choice.values)}."
            )
    if "heads" not in options:
        return {}
    heads, key_dim, value_dim = (int(options[name]) for name in ("heads", "key_dim", "value_dim"))
    if min(heads, key_dim, value_dim) < 1:
        raise ModelError(
            f"block {block_type.kind}: heads, key_dim and value_dim must be positive; "
            f"got {', '.join(f'{name} = {value}' for name, value in options.items())}."
        )
    keys, values = heads * key_dim, heads * value_dim
    return {"heads": heads, "keys": keys, "values": values, "kv": keys + values, "qkv": 2 * keys + values}


def one_of(values: Sequence[int | str]) -> str:
    """(1, 3, 5) -> "1, 3 or 5", for messages."""
    *others, last = map(repr, values)
    return f"{', '.join(others)} or {last}"


def _shown(symbols: tuple[str | int, ...]) -> str:
    return f"({', '.join(map(str, symbols))}{',' if len(symbols) == 1 else ''})"
