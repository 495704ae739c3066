"""Compile and time single launches on the GPU at hand."""

from __future__ import annotations

import statistics
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
from torch import Tensor
from triton.runtime.errors import OutOfResources, PTXASError
from triton.runtime.jit import MockTensor

from effv2_kernels.errors import UnavailableError
from effv2_kernels.triton.ahead import Resources, compile_in_parallel
from effv2_kernels.triton.graph import captured
from effv2_kernels.triton.launch import FeatureMap, Launch, Tile
from effv2_kernels.triton.plan import execute

# Milliseconds that one replay of a timing takes, and how many there are.
_TIMING = 1
_REPLAYS = 7

# Triton has one listener for all threads.
_LISTENING = threading.Lock()


def compile_here(launch: Launch, tile: Tile) -> Resources | None:
    """Compile one launch for the current GPU, or find it in Triton's cache; None where it does not fit."""
    arguments = [
        MockTensor(v.dtype) if isinstance(v, (FeatureMap, Tensor)) else v for v in launch.arguments.values()
    ]
    constants, options = launch.settings(tile)
    try:
        made: Any = launch.kernel.warmup(*arguments, grid=(1,), **constants, **options)
        made._init_handles()
    except (OutOfResources, PTXASError):
        return None
    return Resources(made.n_regs, 4 * made.n_spills, made.metadata.shared)


def compile_missing(pairs: Sequence[tuple[Launch, Tile]]) -> None:
    """Compile launches with their tiles for the current GPU, unless Triton's cache has them.

    Triton tells of each whether it has it: no processes are started before one is missing.
    """
    for done, (launch, tile) in enumerate(pairs, start=1):
        if _compiles(launch, tile):
            major, minor = torch.cuda.get_device_capability()
            compile_in_parallel(pairs[done:], 10 * major + minor)
            return


def _compiles(launch: Launch, tile: Tile) -> bool:
    """Whether ``compile_here`` found nothing in Triton's cache."""
    knobs: Any = triton.knobs.compilation
    missing = False

    def listen(**told: Any) -> None:
        nonlocal missing
        missing = missing or not told["cache_hit"]
        if before is not None:
            before(**told)

    with _LISTENING:
        before = knobs.listener
        knobs.listener = listen
        try:
            compile_here(launch, tile)
        finally:
            knobs.listener = before
    return missing


def best_unmeasured(launch: Launch) -> tuple[Tile, Resources]:
    """The first of a launch's tiles that fits the current GPU without spilling, or spills least.

    Raises UnavailableError where none can be launched at all.
    """
    fitting = []
    for tile in launch.tiles:
        made = compile_here(launch, tile)
        if made is not None and made.stack == 0:
            return tile, made
        if made is not None:
            fitting.append((tile, made))
    if not fitting:
        raise UnavailableError(
            f"none of the {len(launch.tiles)} tiles of {launch.name} fits into the shared memory of this GPU "
            f"({torch.cuda.get_device_name()}). Use another GPU, or another precision with "
            f"optimize(model, dtype=...)."
        )
    return min(fitting, key=lambda found: found[1].stack)


def milliseconds(launch: Launch, tile: Tile) -> float:
    """The median time of one launch, replayed in a CUDA graph on random numbers.

    Raises UnavailableError where its buffers do not fit beside what is in memory.
    """
    try:
        memory = {m: _random(m) for m in launch.arguments.values() if isinstance(m, FeatureMap)}
        return _median(lambda: execute(launch, tile, memory))
    except torch.OutOfMemoryError as error:
        raise UnavailableError(
            f"the GPU has too little free memory to time {launch.name}: it needs {launch.bytes / 1e6:.0f} MB "
            f"beside what is there. Free some, or give a smaller batch; the model can be used as it is."
        ) from error


def _median(run: Callable[[], None]) -> float:
    """As ``triton.testing.do_bench_cudagraph``, but for any GPU and beside captures of other threads."""

    def several(count: int) -> None:
        for _ in range(count):
            run()

    run()
    count = max(1, int(_TIMING / (_elapsed(lambda: several(5)) / 5)))
    graph = torch.cuda.CUDAGraph()
    with captured(graph):
        several(count)
    return statistics.median(_elapsed(graph.replay) / count for _ in range(_REPLAYS))


def _elapsed(run: Callable[[], object]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    milliseconds: float = start.elapsed_time(end)
    return max(milliseconds, 1e-6)


def _random(m: FeatureMap) -> Tensor:
    return torch.randn(m.reach, device="cuda", dtype=m.dtype)
