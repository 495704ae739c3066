"""Where version 0.2.0 had the model: pickles of that version name its classes here."""

from effv2_kernels.families import create_model
from effv2_kernels.families.efficientformer_v2 import VARIANTS, Architecture, EfficientFormerV2

__all__ = ["VARIANTS", "Architecture", "EfficientFormerV2", "create_model"]
