"""Packed engines for the ops: made at the first call with some weights, found again at the next.

An engine is found by the identity of the weight tensors and lives as long as they do. A weight changed in
place since then (its version counter tells) is packed anew. Weights that require gradients are compared as
well, since fused optimisers do not count what they write. Other changes that PyTorch does not count, through
``.data`` or a NumPy array that shares the memory, go unnoticed. Tensors made in inference mode have no
version counter; they are packed at every call.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from effv2_kernels import backends, blocks, cpu
from effv2_kernels.declaration import block_sizes
from effv2_kernels.engine import Engine
from effv2_kernels.errors import InputError, ModelError
from effv2_kernels.outline import Outline


@dataclass
class _Entry:
    engine: Engine
    weights: list[weakref.ref[Tensor]]
    versions: list[int]
    values: list[Tensor] | None = None  # of weights that are trained


_entries: dict[Hashable, _Entry] = {}


def _find(what: Hashable, weights: Sequence[Tensor], make: Callable[[], Engine]) -> Engine:
    if any(t.is_inference() for t in weights):
        return make()
    key = (what, *map(id, weights))
    versions = [t._version for t in weights]
    entry = _entries.get(key)
    if (
        entry is None
        or entry.versions != versions
        or any(ref() is not t for ref, t in zip(entry.weights, weights, strict=True))
        or (entry.values is not None and not all(map(torch.equal, entry.values, weights)))
    ):

        def forget(_: object) -> None:
            _entries.pop(key, None)

        entry = _Entry(make(), [weakref.ref(t, forget) for t in weights], versions)
        _entries[key] = entry
    if entry.values is None and any(t.requires_grad for t in weights):
        entry.values = [t.detach().clone() for t in weights]
    return entry.engine


def block_engine(kind: str, x: Tensor, values: Sequence[Any], build: Callable[[], blocks.Block]) -> Engine:
    """The engine of the block that ``build`` makes of ``values``, its fields, for an input like x.

    It runs where x is, in the precision of x.

    Raises InputError where shapes, dtypes or devices of x and the fields do not fit together.
    """
    choice = block_choice(kind, x, values)
    weights = [v for v in values if isinstance(v, Tensor)]
    options = tuple(... if isinstance(v, Tensor) else v for v in values)
    return _find((kind, choice, options), weights, lambda: new_block_engine(build, choice, x.device))


def block_choice(kind: str, x: Tensor, values: Sequence[Any]) -> backends.Choice:
    """What runs a block with the fields ``values`` on x. Raises as ``block_engine`` does."""
    elsewhere = next((v.device for v in values if isinstance(v, Tensor) and v.device != x.device), None)
    if elsewhere is not None:
        raise InputError(
            f"{kind}: x is on {x.device} and a weight on {elsewhere}; move one of them with .to(...)."
        )
    names = backends.DTYPE_NAMES
    if x.dtype not in names:
        raise InputError(f"{kind}: expected x in {', '.join(map(str, names))}, but got {x.dtype}.")
    return backends.choose(dtype=names[x.dtype], device=x.device)


def new_block_engine(
    build: Callable[[], blocks.Block], choice: backends.Choice, device: torch.device
) -> Engine:
    """An engine of the block that ``build`` makes. Raises InputError where its fields do not fit together."""
    try:
        block = build()
        block_sizes(block)
        return _engine(blocks.Network((block,), ("",)), choice, device)
    except ModelError as error:
        raise InputError(str(error)) from error


def network_engine(weights: Sequence[Tensor], outline: Outline, settings: backends.Settings) -> Engine:
    """The engine of the network that an outline and its weights make.

    It runs where the weights are. Raises UnavailableError where that cannot be.
    """
    device = weights[0].device
    choice = settings.choose(device)

    def make() -> Engine:
        return _engine(outline.rebuild(weights), choice, device, cuda_graph=settings.cuda_graph)

    return _find((outline, choice, settings.cuda_graph), weights, make)


def _engine(
    network: blocks.Network, choice: backends.Choice, device: torch.device, *, cuda_graph: bool = True
) -> Engine:
    if choice.backend == "cpu":
        return cpu.Engine(network, choice.isa, choice.dtype)
    from effv2_kernels.gpu.engine import Engine as GpuEngine
    from effv2_kernels.gpu.kernels import kernels_of

    kernels = kernels_of(choice.backend)
    return GpuEngine(network, kernels, backends.TORCH_DTYPES[choice.dtype], device, cuda_graph=cuda_graph)
