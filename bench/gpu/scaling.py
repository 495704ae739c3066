"""The CPU engine on one to all cores of a machine, beside eager PyTorch: how far more cores carry.

Beside a GPU there usually are more cores than where the CPU engine is developed.
"""

from __future__ import annotations

import os
import statistics
from typing import Any

import torch

import effv2_kernels
from bench.gpu.models import build
from effv2_kernels import cpu
from effv2_kernels.benchmarking.interleave import interleave

VARIANTS = ("s0", "l")
THREADS = (1, 2, 4, 8)
SIZE = (224, 224)
# Eager's logits in float32 are 2e-6 off at most.
DIFFERENCE = 1e-5


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0))


def figures() -> dict[str, tuple[str, int, int]]:
    """What is measured: (variant, batch, threads) by key, "l 64 8". Batches are one image and four a core."""
    threads = [n for n in THREADS if n < cores()] + [cores()]
    return {
        f"{variant} {batch} {n}": (variant, batch, n)
        for batch in (1, 4 * cores())
        for variant in VARIANTS
        for n in threads
    }


def measure(variant: str, batch: int, threads: int, *, seconds: float) -> dict[str, Any]:
    """One figure: milliseconds of a call, of each contestant; ``failure`` where outputs differ.

    seconds: of timing. Raises effv2_kernels.UnavailableError where there is no compiled module.
    """
    model = build(variant, SIZE, torch.device("cpu"))
    fast = effv2_kernels.optimize(model, verify=False)
    x = torch.randn(batch, 3, *SIZE, generator=torch.Generator().manual_seed(batch))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            found = interleave({"effv2": lambda: fast(x), "eager": lambda: model(x)}, seconds)
    finally:
        torch.set_num_threads(before)
    ours, eager = found.outputs["effv2"], found.outputs["eager"]
    assert isinstance(ours, torch.Tensor)
    assert isinstance(eager, torch.Tensor)
    difference = float((ours.double() - eager.double()).norm() / eager.double().norm())
    rounds = {name: [statistics.median(turn) for turn in turns] for name, turns in found.calls.items()}
    row: dict[str, Any] = {
        "variant": variant,
        "batch": batch,
        "threads": threads,
        "isa": cpu.default_isa(),
        "ms": {name: 1e3 * statistics.median(times) for name, times in rounds.items()},
        "faster_than_eager": statistics.median(
            b / a for a, b in zip(rounds["effv2"], rounds["eager"], strict=True)
        ),
        "difference_from_eager": difference,
    }
    if not difference <= DIFFERENCE:
        row["failure"] = f"differs from eager by {difference:.2e}, allowed are {DIFFERENCE:.0e}"
    return row
