"""The model and every block in plain PyTorch: the meaning of the project and the oracle of its kernels."""

from effv2_kernels.reference.attention import attention
from effv2_kernels.reference.attention_downsample import attention_downsample
from effv2_kernels.reference.conv_downsample import conv_downsample
from effv2_kernels.reference.ffn import ffn
from effv2_kernels.reference.head import head
from effv2_kernels.reference.model import VARIANTS, Architecture, EfficientFormerV2, create_model
from effv2_kernels.reference.network import BLOCK_FUNCTIONS, run, run_block
from effv2_kernels.reference.stem import stem

__all__ = [
    "BLOCK_FUNCTIONS",
    "VARIANTS",
    "Architecture",
    "EfficientFormerV2",
    "attention",
    "attention_downsample",
    "conv_downsample",
    "create_model",
    "ffn",
    "head",
    "run",
    "run_block",
    "stem",
]
