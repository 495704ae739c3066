"""Every block in plain PyTorch: the meaning of the project and the oracle of its kernels."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from effv2_kernels.reference.network import BLOCK_FUNCTIONS, run, run_block

if TYPE_CHECKING:
    from effv2_kernels.families import create_model
    from effv2_kernels.families.efficientformer_v2 import VARIANTS, Architecture, EfficientFormerV2

# Each block's function by its own name: ``reference.ffn(x, block)``, in the place of the module that has it.
globals().update(BLOCK_FUNCTIONS)

_MODEL = ("VARIANTS", "Architecture", "EfficientFormerV2", "create_model")

__all__ = [
    "BLOCK_FUNCTIONS",
    "VARIANTS",
    "Architecture",
    "EfficientFormerV2",
    "create_model",
    "run",
    "run_block",
    *BLOCK_FUNCTIONS,
]


def __getattr__(name: str) -> Any:
    """The model, by the names that version 0.2.0 had here: families need the reference, not the other way."""
    if name not in _MODEL:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("effv2_kernels.reference.model"), name)
