"""How a block becomes an op: the schema is read from its declaration.

``torch.ops.effv2.<kind>(Tensor x, <tensors and options in declared order>) -> Tensor``. The ops are
defined and implemented through ``torch.library.Library``, whose calls cost a third of those of
``torch.library.custom_op``. Their derivatives and transforms are those of the reference: see
``effv2_kernels.ops.differentiation``. For Torch's compiler the op of a block is more than a black box on a
GPU: see ``effv2_kernels.ops.decomposition``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import MISSING
from typing import Any

import torch
from torch import Tensor

from effv2_kernels import blocks
from effv2_kernels.declaration import Argument, arguments, assemble, block_sizes
from effv2_kernels.errors import InputError, ModelError
from effv2_kernels.inputs import check_input
from effv2_kernels.ops.differentiation import differentiable

LIBRARY = torch.library.Library("effv2", "DEF")

_SCHEMA_TYPES: dict[Any, str] = {Tensor: "Tensor", int: "int", bool: "bool", str: "str"}


def schema(name: str, made_of: Iterable[Argument]) -> str:
    """The op's schema, e.g. ``head(Tensor x, Tensor weight, Tensor bias) -> Tensor``."""
    listed = ["Tensor x"]
    for a in made_of:
        default = f'="{a.default}"' if a.type is str else f"={a.default}"
        default = "" if a.default is MISSING else default
        listed.append(f"{_SCHEMA_TYPES[a.type]}{'?' * a.optional} {a.name}{default}")
    return f"{name}({', '.join(listed)}) -> Tensor"


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


def output_size(block: blocks.Block, size: tuple[Any, Any]) -> tuple[Any, Any] | None:
    """Rows and columns of a block's output for those of its input; None for logits. Symbolic ones as well."""
    step = block.step
    if step is None:
        return None
    if step == 1:
        return size
    return (size[0] + step - 1) // step, (size[1] + step - 1) // step


def register(block_type: type[blocks.Block]) -> None:
    """Define ``torch.ops.effv2.<kind>`` with its kernels, fake kernel and autograd."""
    _register(block_type.kind, block_type, arguments(block_type), {})


def register_earlier(kind: str, now: blocks.Earlier) -> None:
    """Define the op that an earlier version had for a kind of block; it took no options."""
    block_type = blocks.BLOCK_TYPES[now.kind]
    given = [a for a in arguments(block_type) if a.default is MISSING]
    _register(kind, block_type, given, now.options)


def _register(
    kind: str,
    block_type: type[blocks.Block],
    made_of: Sequence[Argument],
    options: dict[str, int | str],
) -> None:
    names = [a.name for a in made_of]

    def make(values: Sequence[Any]) -> blocks.Block:
        # PyTorch leaves out trailing arguments that have their default value.
        return assemble(block_type, {**dict(zip(names, values, strict=False)), **options})

    def run(x: Tensor, *values: Any) -> Tensor:
        from effv2_kernels.ops.engines import block_engine

        return block_engine(kind, x, values, lambda: make(values)).run(x)[0]

    def checked(values: Sequence[Any]) -> tuple[blocks.Block, dict[str, int]]:
        try:
            block = make(values)
            return block, block_sizes(block)
        except ModelError as error:
            raise InputError(str(error)) from error

    def fake(x: Tensor, *values: Any) -> Tensor:
        block, sizes = checked(values)
        torch._check(x.ndim == 4, lambda: f"expected images of rank 4, got {tuple(x.shape)}")
        torch._check(x.shape[1] == sizes["in"], lambda: f"expected {sizes['in']} channels, got {x.shape[1]}")
        return empty_map(x, sizes["out"], output_size(block, (x.shape[2], x.shape[3])))

    def reference(x: Tensor, *values: Any) -> Tensor:
        from effv2_kernels.reference import run_block

        block, sizes = checked(values)
        check_input(x, sizes["in"], x.dtype, x.device)
        return run_block(block, x)

    define(schema(kind, made_of), run, fake, reference)
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
    reference: Callable[..., Any],
) -> None:
    """Put one op into the library.

    run: its kernel. fake: its outputs without data. reference: what it computes, by PyTorch's own operations.
    All take the op's arguments.
    """
    LIBRARY.define(op_schema, tags=_TAGS)
    name = op_schema.partition("(")[0]
    for device in ("CPU", "CUDA"):
        LIBRARY.impl(name, run, device)
    torch.library.register_fake(f"effv2::{name}", fake, lib=LIBRARY)
    op = getattr(torch.ops.effv2, name).default
    LIBRARY.impl(name, differentiable(op, reference), "Autograd")
    LIBRARY.impl(name, reference, "FuncTorchDynamicLayerFrontMode")
