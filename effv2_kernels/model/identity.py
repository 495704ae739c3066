"""Whether the parameters of a module are still the tensors that its engine knows, asked at every call."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import chain
from operator import is_
from typing import Any

from effv2_kernels.cpu import native
from effv2_kernels.errors import UnavailableError

_Same = Callable[[tuple[Any, ...], tuple[dict[str, Any], ...]], bool]


def same_objects(expected: tuple[Any, ...], dictionaries: tuple[dict[str, Any], ...]) -> bool:
    """Whether the dictionaries' values are these very objects, in this order."""
    return _fastest()(expected, dictionaries)


def in_python(expected: tuple[Any, ...], dictionaries: tuple[dict[str, Any], ...]) -> bool:
    """As ``same_objects``, without the compiled module, which a GPU does not need: ten times as long."""
    held = tuple(chain.from_iterable(values.values() for values in dictionaries))
    return len(held) == len(expected) and all(map(is_, held, expected))


@cache
def _fastest() -> _Same:
    try:
        compiled: _Same = native().same_objects
    except UnavailableError:
        return in_python
    return compiled
