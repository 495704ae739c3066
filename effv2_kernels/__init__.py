"""Makes image models such as EfficientFormerV2 fast, and proves that they compute the same function.

    model = effv2_kernels.create_model("efficientformerv2_s0", checkpoint="s0.pth")   # or timm's
    fast = effv2_kernels.optimize(model)
    logits = fast(images)

Everything is imported on first use, so that ``import effv2_kernels`` costs next to nothing.
``import effv2_kernels.ops`` registers every block as ``torch.ops.effv2.*``.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from effv2_kernels.errors import (
        CheckpointError,
        Effv2Error,
        ExportError,
        InputError,
        LatencyError,
        MissingAttributeError,
        ModelError,
        ResolutionError,
        SearchError,
        TrainingError,
        UnavailableError,
        UnknownNameError,
    )
    from effv2_kernels.explain import explain
    from effv2_kernels.families import create_model
    from effv2_kernels.optimize import optimize
    from effv2_kernels.profile import profile
    from effv2_kernels.storage import load, save
    from effv2_kernels.tune import tune

__version__ = "0.2.0"

__all__ = [
    "CheckpointError",
    "Effv2Error",
    "ExportError",
    "InputError",
    "LatencyError",
    "MissingAttributeError",
    "ModelError",
    "ResolutionError",
    "SearchError",
    "TrainingError",
    "UnavailableError",
    "UnknownNameError",
    "__version__",
    "create_model",
    "explain",
    "load",
    "optimize",
    "profile",
    "save",
    "tune",
]

_HOMES = {
    "CheckpointError": "errors",
    "Effv2Error": "errors",
    "ExportError": "errors",
    "InputError": "errors",
    "LatencyError": "errors",
    "MissingAttributeError": "errors",
    "ModelError": "errors",
    "ResolutionError": "errors",
    "SearchError": "errors",
    "TrainingError": "errors",
    "UnavailableError": "errors",
    "UnknownNameError": "errors",
    "create_model": "families",
    "explain": "explain",
    "load": "storage",
    "optimize": "optimize",
    "profile": "profile",
    "save": "storage",
    "tune": "tune",
}
_SUBMODULES = frozenset(
    {"blocks", "data", "environment", "errors", "families", "ops", "reference", "sources"}
)


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBMODULES})


class _Package(ModuleType):
    """Keeps ``effv2_kernels.optimize`` the function, although a submodule of that name exists.

    Python binds every imported submodule to its package; without this, ``import effv2_kernels.optimize``
    anywhere in a program would replace the function by the module.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _HOMES and isinstance(value, ModuleType):
            return
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
