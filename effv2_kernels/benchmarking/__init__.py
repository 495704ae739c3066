"""Fair comparison with what a user could pick instead: ``compare(model, images, contestants)``."""

from effv2_kernels.benchmarking.comparison import Comparison, Entry, check_writable, pooled, read, write
from effv2_kernels.benchmarking.contestants import CONTESTANTS, OPENVINO, RIVALS, Contestant, effv2, installed
from effv2_kernels.benchmarking.measure import compare

__all__ = [
    "CONTESTANTS",
    "OPENVINO",
    "RIVALS",
    "Comparison",
    "Contestant",
    "Entry",
    "check_writable",
    "compare",
    "effv2",
    "installed",
    "pooled",
    "read",
    "write",
]
