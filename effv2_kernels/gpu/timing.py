"""Time launches, and networks, on the GPU at hand."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from effv2_kernels.errors import UnavailableError
from effv2_kernels.gpu.graph import captured
from effv2_kernels.gpu.launch import FeatureMap, Launch, Tile
from effv2_kernels.gpu.plan import Plan

# Milliseconds that one replay of a timing takes, and how many there are.
_TIMING = 1
_REPLAYS = 7


def require_gpu(device: torch.device) -> None:
    """Raise UnavailableError where kernels run on the CPU, in an interpreter or an emulator."""
    if device.type != "cuda":
        raise UnavailableError(
            f"only a GPU can be timed, and the kernels of this model run on {device}, for tests."
        )


def milliseconds(launch: Launch, tile: Tile) -> float:
    """The median time of one launch, replayed in a CUDA graph on random numbers.

    Raises UnavailableError where its buffers do not fit beside what is in memory.
    """
    return milliseconds_of_launches([launch], [tile])


def milliseconds_of_launches(launches: Sequence[Launch], tiles: Sequence[Tile]) -> float:
    """As ``milliseconds``, of several launches one behind the other."""
    maps = {m for launch in launches for m in launch.arguments.values() if isinstance(m, FeatureMap)}

    def run() -> None:
        for launch, tile in zip(launches, tiles, strict=True):
            launch.run(tile, memory)

    try:
        memory = {m: _random(m) for m in maps}
        return _median(run)
    except torch.OutOfMemoryError as error:
        names, needed = " and ".join(launch.name for launch in launches), sum(ln.bytes for ln in launches)
        raise _too_little(names, needed) from error


def milliseconds_of_plan(plan: Plan, images: Tensor) -> float:
    """The median time of a network, replayed in a CUDA graph; raises as ``milliseconds`` does."""
    try:
        return _median(plan.for_graph(images))
    except torch.OutOfMemoryError as error:
        raise _too_little("the network", plan.bytes) from error


def _too_little(what: str, needed: int) -> UnavailableError:
    return UnavailableError(
        f"the GPU has too little free memory to time {what}: it needs {needed / 1e6:.0f} MB beside what is "
        f"there. Free some, or give a smaller batch; the model can be used as it is."
    )


def _median(run: Callable[[], object]) -> float:
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
