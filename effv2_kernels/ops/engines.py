"""Packed engines for the ops: made at the first call with some weights, found again at the next.

An engine is found by the identity of the weight tensors and lives as long as they do. A weight changed in
place since then (its version counter tells) is packed anew. Changes that PyTorch itself cannot see, through
``.data`` or a NumPy array that shares the memory, go unnoticed. Tensors made in inference mode have no
version counter; they are packed at every call.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from effv2_kernels import blocks
from effv2_kernels.cpu import Engine, default_isa
from effv2_kernels.errors import InputError, ModelError
from effv2_kernels.structure import block_sizes, rebuild


@dataclass
class _Entry:
    engine: Engine
    weights: list[weakref.ref[Tensor]]
    versions: list[int]


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
    ):

        def forget(_: object) -> None:
            _entries.pop(key, None)

        entry = _Entry(make(), [weakref.ref(t, forget) for t in weights], versions)
        _entries[key] = entry
    return entry.engine


def block_engine(kind: str, values: Sequence[Any], build: Callable[[], blocks.Block]) -> Engine:
    """The engine of the block that ``build`` makes of ``values``, its fields.

    Raises InputError where the shapes or dtypes of the fields do not fit together.
    """

    def make() -> Engine:
        block = build()
        try:
            block_sizes(block)
            return Engine(blocks.Network((block,), ("",)), isa)
        except ModelError as error:
            raise InputError(str(error)) from error

    isa = default_isa()
    weights = [v for v in values if isinstance(v, Tensor)]
    options = tuple(v for v in values if not isinstance(v, Tensor))
    return _find((kind, isa, options), weights, make)


def network_engine(weights: Sequence[Tensor], structure: str, isa: str | None) -> Engine:
    """The engine of a whole network, given as ``effv2_kernels.structure`` describes it."""
    isa = isa or default_isa()
    return _find((structure, isa), weights, lambda: Engine(rebuild(structure, weights), isa))
