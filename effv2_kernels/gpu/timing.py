"""Time single launches on the GPU at hand."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from effv2_kernels.errors import UnavailableError
from effv2_kernels.gpu.graph import captured
from effv2_kernels.gpu.launch import FeatureMap, Launch, Tile

# Milliseconds that one replay of a timing takes, and how many there are.
_TIMING = 1
_REPLAYS = 7


def milliseconds(launch: Launch, tile: Tile) -> float:
    """The median time of one launch, replayed in a CUDA graph on random numbers.

    Raises UnavailableError where its buffers do not fit beside what is in memory.
    """
    try:
        memory = {m: _random(m) for m in launch.arguments.values() if isinstance(m, FeatureMap)}
        return _median(lambda: launch.run(tile, memory))
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
    count = max(1, int(_TIMING / (elapsed(lambda: several(5)) / 5)))
    graph = torch.cuda.CUDAGraph()
    with captured(graph):
        several(count)
    return statistics.median(elapsed(graph.replay) / count for _ in range(_REPLAYS))


def elapsed(run: Callable[[], object]) -> float:
    """The milliseconds that the GPU needs for what ``run`` launches."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    milliseconds: float = start.elapsed_time(end)
    return max(milliseconds, 1e-6)


def _random(m: FeatureMap) -> Tensor:
    return torch.randn(m.reach, device="cuda", dtype=m.dtype)
