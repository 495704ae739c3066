"""Timing on a GPU: contestants in turns, device events, inputs that rotate, the ratio of each round."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

# Milliseconds of one turn, and how many rounds there are at least and at most.
TURN = 20.0
MIN_ROUNDS = 7
MAX_ROUNDS = 60

# Calls that are profiled, and characters of a kernel's name that are kept.
_PROFILED = 5
_NAME = 120

# The first call compiles, the second captures a graph, the third is the first one as all later ones are.
_FIRST_CALLS = 3

Run = Callable[[Tensor], object]


def interleave(runs: Mapping[str, Run], inputs: Sequence[Tensor], seconds: float) -> dict[str, list[float]]:
    """Milliseconds of one call of each of ``runs``, round by round: A B C, C B A, ..., for about ``seconds``.

    Each turn queues as many calls as take TURN between two events of the GPU. Each call takes the next of
    ``inputs``, over all turns of a contestant, so that together they are read before one comes again. What a
    call needs of the CPU counts where the GPU has to wait for it, as it does for a user who calls in a loop.
    """
    rotating = {name: itertools.cycle(inputs) for name in runs}
    calls = {name: _calls_of_a_turn(run, rotating[name]) for name, run in runs.items()}
    found: dict[str, list[float]] = {name: [] for name in runs}
    order = list(runs)
    start = time.perf_counter()
    for done in range(MAX_ROUNDS):
        if done >= MIN_ROUNDS and time.perf_counter() - start >= seconds:
            break
        for name in order:
            found[name].append(_turn(runs[name], rotating[name], calls[name]))
        order.reverse()
    return found


def by_itself(run: Run, inputs: Sequence[Tensor]) -> list[float]:
    """Milliseconds of a call, twice, after calls that compile and warm up."""
    for _ in range(_FIRST_CALLS):
        run(inputs[0])
    return [_turn(run, itertools.cycle(inputs), 1) for _ in range(2)]


def kernels(run: Run, inputs: Sequence[Tensor]) -> list[tuple[str, float]]:
    """What one call runs on the GPU, in order: (kernel, microseconds), medians over a few calls.

    By PyTorch's profiler, whose overhead lies between kernels and not within them. Empty where it sees none,
    or not the same number of them in every call.
    """
    from torch.profiler import ProfilerActivity, profile

    try:
        with profile(activities=[ProfilerActivity.CUDA]) as profiled:
            for i in range(_PROFILED):
                run(inputs[i % len(inputs)])
            torch.cuda.synchronize()
        events = [e for e in profiled.events() or () if e.device_type == torch.autograd.DeviceType.CUDA]
    except Exception:  # a profiler that cannot run costs no figures
        return []
    each, rest = divmod(len(events), _PROFILED)
    if rest:
        return []
    events.sort(key=lambda e: e.time_range.start)
    calls = [events[i * each : (i + 1) * each] for i in range(_PROFILED)]
    return [
        (same[0].name[:_NAME], round(statistics.median(e.time_range.elapsed_us() for e in same), 2))
        for same in zip(*calls, strict=True)
    ]


def median_ratio(slower: Sequence[float], faster: Sequence[float]) -> float:
    """The median over the rounds of slower / faster."""
    return statistics.median(a / b for a, b in zip(slower, faster, strict=True))


def _calls_of_a_turn(run: Run, inputs: Iterator[Tensor]) -> int:
    for _ in range(_FIRST_CALLS):
        run(next(inputs))
    return max(1, round(TURN / max(_turn(run, inputs, 2), 1e-3)))


def _turn(run: Run, inputs: Iterator[Tensor], calls: int) -> float:
    run(next(inputs))  # wakes the GPU; not timed
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(calls):
        run(next(inputs))
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / calls
