"""What ``optimize`` returns, and what it is made of."""

from effv2_kernels.model.optimized import OptimizedModel

__all__ = ["OptimizedModel"]
