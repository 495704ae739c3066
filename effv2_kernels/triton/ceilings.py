"""What the GPU at hand can do at best, measured: bytes per second of a copy, FLOP per second of a product."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton.testing

# Far beyond any cache, and long enough to reach the full clock.
_COPIED_BYTES = 2**29
_MATRIX = 8192


@dataclass(frozen=True)
class Ceilings:
    """bytes: read and written per second. flops: per second, two for each multiply-add."""

    bytes: float
    flops: float

    def share(self, moved: float, flop: float, seconds: float) -> float:
        """Of the ceiling that is nearer, between 0 and 1: what the GPU does in ``seconds``."""
        return max(moved / self.bytes, flop / self.flops) / seconds


def measure_ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """By PyTorch's own copy and its own matrix product in ``dtype``, the median of several runs."""
    with torch.cuda.device(device):
        x = torch.randn(_COPIED_BYTES // 4, device=device)
        y = torch.empty_like(x)
        copying: float = triton.testing.do_bench(lambda: y.copy_(x), return_mode="median")
        a = torch.randn(_MATRIX, _MATRIX, device=device).to(dtype)
        product = torch.empty_like(a)
        multiplying: float = triton.testing.do_bench(
            lambda: torch.mm(a, a, out=product), return_mode="median"
        )
    return Ceilings(2 * x.nbytes / copying * 1e3, 2 * _MATRIX**3 / multiplying * 1e3)
