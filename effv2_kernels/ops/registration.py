"""How a block becomes an op: the schema is read from the fields of its dataclass.

``torch.ops.effv2.<kind>(Tensor x, <fields of the block in declared order>) -> Tensor``. The ops are
defined and implemented through ``torch.library.Library``, whose calls cost a third of those of
``torch.library.custom_op``. Differentiation runs the reference again under autograd. For Torch's compiler the
op of a block is more than a black box on a GPU: see ``effv2_kernels.ops.decomposition``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, fields
from typing import Any, TypeAlias

import torch
from torch import Tensor

from effv2_kernels import blocks
from effv2_kernels.errors import InputError, ModelError
from effv2_kernels.structure import block_sizes

LIBRARY = torch.library.Library("effv2", "DEF")

# From rows and columns of a block's input to those of its output; None for logits.
OutputShape: TypeAlias = Callable[[Any, Any], "tuple[Any, Any] | None"]
OUTPUT_SHAPES: dict[str, OutputShape] = {}

_SCHEMA_TYPES = {"Tensor": "Tensor", "Tensor | None": "Tensor?", "int": "int", "bool": "bool"}


def schema(block_type: type[blocks.Block]) -> str:
    """The op's schema, e.g. ``head(Tensor x, Tensor weight, Tensor bias) -> Tensor``."""
    arguments = ["Tensor x"]
    for field in fields(block_type):
        default = "" if field.default is MISSING else f"={field.default}"
        arguments.append(f"{_SCHEMA_TYPES[str(field.type)]} {field.name}{default}")
    return f"{block_type.kind}({', '.join(arguments)}) -> Tensor"


def empty_map(x: Tensor, channels: Any, size: tuple[Any, Any] | None) -> Tensor:
    """What an op returns for x: (N, channels, rows, columns) in channels_last, or (N, channels)."""
    if size is None:
        return torch.empty((x.shape[0], channels), dtype=x.dtype, device=x.device)
    return torch.empty(
        (x.shape[0], channels, *size),
        dtype=x.dtype,
        device=x.device,
        memory_format=torch.channels_last,
    )


def register(block_type: type[blocks.Block], output_shape: OutputShape) -> None:
    """Define ``torch.ops.effv2.<kind>`` with its kernels, fake kernel and autograd."""
    kind = block_type.kind
    OUTPUT_SHAPES[kind] = output_shape
    names = [f.name for f in fields(block_type)]

    def make(values: Sequence[Any]) -> blocks.Block:
        # PyTorch leaves out trailing arguments that have their default value.
        return block_type(**dict(zip(names, values, strict=False)))

    def run(x: Tensor, *values: Any) -> Tensor:
        from effv2_kernels.ops.engines import block_engine

        return block_engine(kind, x, values, lambda: make(values)).run(x)[0]

    def fake(x: Tensor, *values: Any) -> Tensor:
        try:
            sizes = block_sizes(make(values))
        except ModelError as error:
            raise InputError(str(error)) from error
        torch._check(x.ndim == 4, lambda: f"expected images of rank 4, got {tuple(x.shape)}")
        torch._check(x.shape[1] == sizes["in"], lambda: f"expected {sizes['in']} channels, got {x.shape[1]}")
        return empty_map(x, sizes["out"], output_shape(x.shape[2], x.shape[3]))

    def reference(x: Tensor, values: Sequence[Any]) -> list[Tensor]:
        from effv2_kernels.reference import run_block

        return [run_block(make(values), x)]

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        save_inputs(ctx, inputs)

    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        inputs = saved_inputs(ctx)
        found = iter(
            gradients(
                lambda tensors: reference(tensors[0], merged(inputs, tensors)[1:]),
                tensors_of(inputs),
                [gradient],
            )
        )
        return tuple(next(found) if isinstance(value, Tensor) else None for value in inputs)

    define(schema(block_type), run, fake, setup_context, backward)
    _register_decomposition(kind, make)


def _register_decomposition(kind: str, make: Callable[[Sequence[Any]], blocks.Block]) -> None:
    """Let Torch's compiler look into a block's op: see ``effv2_kernels.ops.decomposition``."""
    # Torch before 2.6 cannot. GPUs need 2.10, and on the CPU the op stays as it is in any case.
    if not hasattr(torch.library, "wrap_triton"):
        return
    from torch._subclasses.functional_tensor import FunctionalTensorMode

    def rule(
        mode: Any, op: Any, types: Sequence[type], args: Sequence[Any], kwargs: dict[str, Any] | None
    ) -> Any:
        from effv2_kernels.ops.decomposition import can_decompose, decompose

        x, *values = args
        if not can_decompose(x, values, types):
            return mode.__torch_dispatch__(op, types, args, kwargs)
        with mode:
            return decompose(kind, x, values, lambda: make(values))

    name = f"effv2::{kind}"
    torch.library.register_torch_dispatch(name, FunctionalTensorMode, rule, lib=LIBRARY)
    # As triton_op does, for the key of the compiler's cache: see ``effv2_kernels.triton.identity``.
    getattr(torch._library.triton, "triton_ops_to_kernels", {})[name] = _KERNELS


class _Kernels(list[object]):
    """What stands for the kernels of the ops, made when it is asked for: that needs Triton and a GPU."""

    def __iter__(self) -> Iterator[object]:
        from effv2_kernels.ops.decomposition import kernels

        return iter(kernels())


_KERNELS = _Kernels()


# On a GPU an op keeps memory and captures a graph of its own; Torch's compiler must not capture it as well.
_TAGS = (torch.Tag.cudagraph_unsafe,) if hasattr(torch.Tag, "cudagraph_unsafe") else ()


def define(
    op_schema: str,
    run: Callable[..., Any],
    fake: Callable[..., Any],
    setup_context: Callable[..., None],
    backward: Callable[..., Any],
) -> None:
    """Put one op into the library."""
    LIBRARY.define(op_schema, tags=_TAGS)
    name = op_schema.partition("(")[0]
    for device in ("CPU", "CUDA"):
        LIBRARY.impl(name, run, device)
    torch.library.register_fake(f"effv2::{name}", fake, lib=LIBRARY)
    torch.library.register_autograd(f"effv2::{name}", backward, setup_context=setup_context, lib=LIBRARY)


def tensors_of(inputs: Sequence[Any]) -> list[Tensor]:
    """The tensors among an op's arguments."""
    return [value for value in inputs if isinstance(value, Tensor)]


def merged(inputs: Sequence[Any], tensors: Sequence[Tensor]) -> list[Any]:
    """An op's arguments with its tensors replaced, in order."""
    replacement = iter(tensors)
    return [next(replacement) if isinstance(value, Tensor) else value for value in inputs]


def save_inputs(ctx: Any, inputs: Sequence[Any]) -> None:
    """Keep an op's arguments for its backward."""
    ctx.save_for_backward(*tensors_of(inputs))
    ctx.layout = [None if isinstance(value, Tensor) else (value,) for value in inputs]


def saved_inputs(ctx: Any) -> list[Any]:
    """What ``save_inputs`` kept."""
    tensors = iter(ctx.saved_tensors)
    return [next(tensors) if value is None else value[0] for value in ctx.layout]


def gradients(
    function: Callable[[list[Tensor]], list[Tensor]], tensors: Sequence[Tensor], upstream: Sequence[Tensor]
) -> list[Tensor | None]:
    """The gradients of the reference ``function`` at ``tensors``; None for those that need none."""
    with torch.enable_grad():
        leaves = [t.detach().requires_grad_(t.requires_grad) for t in tensors]
        wanted = [t for t in leaves if t.requires_grad]
        outputs = function(leaves)
        found = iter(torch.autograd.grad(outputs, wanted, list(upstream), allow_unused=True))
    return [next(found) if t.requires_grad else None for t in leaves]
