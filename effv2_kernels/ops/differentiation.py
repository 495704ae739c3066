"""Derivatives of the ops, and the transforms of ``torch.func``: those of the reference.

PyTorch's dispatcher comes to an op by layers. Here are two of them. Under the transforms (``vmap``, ``grad``,
``jvp``, ``functionalize``) the reference runs in the op's place, so that they see operations that they know.
For autograd the op runs, and the reference again in the backward pass; tangents of forward-mode
differentiation need the reference at once, since an op of ``torch.library`` has no place for a forward rule
and would lose them, and so do modes that count or log operations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from effv2_kernels.ops.routes import is_watched


def differentiable(op: Callable[..., Any], reference: Callable[..., Any]) -> Callable[..., Any]:
    """The kernel of ``op`` for autograd. Both take the op's arguments: tensors, lists of them, and others."""

    def kernel(*arguments: Any) -> Any:
        tensors = _tensors(arguments)
        if is_watched() or (forward_ad._current_level >= 0 and any(map(_has_tangent, tensors))):
            return reference(*arguments)
        if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
            layout = _replaced(arguments, iter([_PLACE] * len(tensors)))
            outputs = _Recorded.apply(op, reference, layout, *tensors)  # type: ignore[no-untyped-call]
            return list(outputs) if isinstance(outputs, tuple) else outputs
        with torch._C._AutoDispatchBelowAutograd():
            return op(*arguments)

    return kernel


class _Recorded(torch.autograd.Function):
    """A call of an op, with a backward pass through the reference."""

    @staticmethod
    def forward(ctx: Any, op: Any, reference: Any, layout: Sequence[Any], *tensors: Tensor) -> Any:
        ctx.reference, ctx.layout = reference, layout
        ctx.save_for_backward(*tensors)
        outputs = op(*_replaced(layout, iter(tensors)))
        return tuple(outputs) if isinstance(outputs, (list, tuple)) else outputs

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        def run(tensors: Sequence[Tensor]) -> list[Tensor]:
            y = ctx.reference(*_replaced(ctx.layout, iter(tensors)))
            return [y] if isinstance(y, Tensor) else list(y)

        return None, None, None, *_gradients(run, ctx.saved_tensors, upstream)


def _gradients(
    function: Callable[[Sequence[Tensor]], list[Tensor]],
    tensors: Sequence[Tensor],
    upstream: Sequence[Tensor],
) -> list[Tensor | None]:
    """The gradients of ``function`` at ``tensors``; None for those that need none.

    Where the backward pass records a graph of its own (``create_graph=True``), they can be differentiated.
    """
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        inputs = list(tensors) if again else [t.detach().requires_grad_(t.requires_grad) for t in tensors]
        wanted = [t for t in inputs if t.requires_grad]
        outputs = function(inputs)
        found = iter(
            torch.autograd.grad(outputs, wanted, list(upstream), allow_unused=True, create_graph=again)
        )
    return [next(found) if t.requires_grad else None for t in inputs]


_PLACE = object()  # of a tensor


def _tensors(arguments: Sequence[Any]) -> list[Tensor]:
    """The tensors among an op's arguments, and in the lists among them."""
    found: list[Tensor] = []
    for value in arguments:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += _tensors(value)
    return found


def _replaced(arguments: Sequence[Any], values: Iterator[Any]) -> list[Any]:
    """The arguments with ``values`` in the places of their tensors, in order."""
    return [
        next(values)
        if value is _PLACE or isinstance(value, Tensor)
        else _replaced(value, values)
        if isinstance(value, (list, tuple))
        else value
        for value in arguments
    ]


def _has_tangent(t: Tensor) -> bool:
    return forward_ad.unpack_dual(t).tangent is not None
