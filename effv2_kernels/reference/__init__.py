"""The model and every block in plain PyTorch: the meaning of the project and the oracle of its kernels."""

from effv2_kernels.reference.model import VARIANTS, Architecture, EfficientFormerV2, create_model
from effv2_kernels.reference.network import BLOCK_FUNCTIONS, run, run_block

# Each block's function by its own name: ``reference.ffn(x, block)``, in the place of the module that has it.
globals().update(BLOCK_FUNCTIONS)

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
