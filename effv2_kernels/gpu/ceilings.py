"""What the GPU at hand can do at best, measured: bytes per second of a copy, FLOP per second of a product."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch

from effv2_kernels.gpu.timing import elapsed

# Far beyond any cache, and long enough to reach the full clock.
_COPIED_BYTES = 2**29
_MATRIX = 8192

# Milliseconds of runs that warm up, and of those that are timed.
_WARMUP = 25
_TIMED = 100

# More than any cache holds.
_CLEARED_BYTES = 2**28


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
        cache = torch.empty(_CLEARED_BYTES, dtype=torch.int8, device=device)
        x = torch.randn(_COPIED_BYTES // 4, device=device)
        y = torch.empty_like(x)
        copying = _median(lambda: y.copy_(x), cache.zero_)
        a = torch.randn(_MATRIX, _MATRIX, device=device).to(dtype)
        product = torch.empty_like(a)
        multiplying = _median(lambda: torch.mm(a, a, out=product), cache.zero_)
    return Ceilings(2 * x.nbytes / copying * 1e3, 2 * _MATRIX**3 / multiplying * 1e3)


def _median(run: Callable[[], object], clear: Callable[[], object]) -> float:
    """The median milliseconds of a run, each behind one of ``clear``: as in ``triton.testing.do_bench``."""

    def several() -> None:
        for _ in range(5):
            clear()
            run()

    run()
    once = elapsed(several) / 5
    for _ in range(max(1, int(_WARMUP / once))):
        run()
    events = []
    for _ in range(max(1, int(_TIMED / once))):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        clear()
        start.record()
        run()
        end.record()
        events.append((start, end))
    torch.cuda.synchronize()
    times: list[float] = [start.elapsed_time(end) for start, end in events]
    return statistics.median(times)
