"""The plain attributes of a model that its optimised version has as well.

The code around a module reads more of it than its output: detectors number their layers, others ask for
channel counts, feature infos and configurations.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from effv2_kernels.errors import ModelError

# What every module has.
_OF_MODULES = frozenset(vars(nn.Module())) | {"_is_full_backward_hook", "_compiled_call_impl"}


def carried(module: nn.Module) -> dict[str, Any]:
    """Copies of the attributes that were set on the module, and those that its own classes declare as data.

    Left out are modules, parameters and buffers, methods, properties, and whatever holds a module of the
    original. A value that cannot be copied, such as a lock, is handed over as it is.
    """
    found: dict[str, Any] = {}
    inside = {id(part) for part in module.modules()}
    for name, value in _declared(module):
        memo = _Memo(inside)
        try:
            found[name] = copy.deepcopy(value, memo)
        except _HoldsModule:
            continue
        except Exception:  # whatever a class of the user's raises when it is copied
            found[name] = value
    return found


def check_names(attributes: Mapping[str, Any], *, taken: type) -> None:
    """Raise ModelError for an attribute whose name ``taken``, the class of optimised models, itself uses.

    Names of other methods of nn.Module may be used, as on any module: some detectors give layers a ``type``.
    """
    used = [name for name in attributes if name in vars(taken) or name in taken.__annotations__]
    if used:
        shown = ", ".join(map(repr, used))
        raise ModelError(
            f"the model has attributes of names that an optimised model uses itself: {shown}. Rename them, "
            f"or delete them before optimize()."
        )


def _declared(module: nn.Module) -> Iterator[tuple[str, Any]]:
    own = vars(module)
    for cls in type(module).__mro__:
        if cls.__module__.startswith("torch."):
            break
        for name, value in vars(cls).items():
            plain = not callable(value) and not hasattr(value, "__get__") and not name.startswith("_")
            if plain and name not in own and name not in module._modules:
                yield name, value
    for name, value in own.items():
        if name not in _OF_MODULES and not (isinstance(value, Tensor) and value.is_inference()):
            yield name, value


class _HoldsModule(Exception):
    pass


class _Memo(dict[int, Any]):
    """What copy.deepcopy asks for copies that exist; it stops the copy at a module of the original."""

    def __init__(self, modules: set[int]) -> None:
        super().__init__()
        self._modules = modules

    def get(self, key: Any, default: Any = None) -> Any:
        if key in self._modules:
            raise _HoldsModule
        return super().get(key, default)
