"""Timing in turns: A B C, C B A, A B C, ... in one process, so that a slow spell meets all alike.

On a shared machine absolute times drift by a factor of two within minutes, while the ratio of two times
taken next to each other stays within a few percent. So every round gives each contestant one short turn,
and what is compared is the ratio within a round.

Contestants keep thread pools of their own, whose workers spin for a while after the last call and would
steal the next contestant's cores. No pool is told not to spin, since that would slow its owner: each turn
waits until this process uses no processor, wakes its own contestant with one call that is not timed, and
only then times its calls, back to back.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from effv2_kernels.errors import InputError

TURN_SECONDS = 0.04
MAX_CALLS_OF_A_TURN = 25
MIN_ROUNDS = 5


@dataclass
class Measurement:
    """calls[name][round] is the list of seconds of that turn's calls; gauge[round] what the gauge gave."""

    calls: dict[str, list[list[float]]]
    gauge: list[float] = field(default_factory=list)
    outputs: dict[str, object] = field(default_factory=dict)  # what the last timed call of each returned


def settle(limit_seconds: float = 0.1) -> None:
    """Return once the threads of this process have stopped spinning, or after ``limit_seconds``."""
    start = time.perf_counter()
    quiet = 0
    # Twice in a row, since a spinning thread may for a moment have been denied the processor by others.
    while quiet < 2 and time.perf_counter() - start < limit_seconds:
        wall, used = time.perf_counter(), time.process_time()
        time.sleep(0.001)
        busy = time.process_time() - used > 0.1 * (time.perf_counter() - wall)
        quiet = 0 if busy else quiet + 1


def interleave(
    runs: Mapping[str, Callable[[], object]],
    seconds: float,
    *,
    gauge: Callable[[], float] | None = None,
    progress: Callable[[float], None] | None = None,
) -> Measurement:
    """Give each of ``runs`` a turn per round until about ``seconds`` are over, MIN_ROUNDS rounds at least.

    gauge: called once per round, before the turns (the peak of the machine at that moment).
    progress: called with the share of the work that is done, 0 to 1. Raises as ``check_seconds``.
    """
    check_seconds(seconds)
    if not runs:
        return Measurement({})
    calls_of_a_turn = {name: _calls_of_a_turn(run) for name, run in runs.items()}
    found = Measurement({name: [] for name in runs})
    order = list(runs)
    collecting = gc.isenabled()
    gc.disable()
    start = time.perf_counter()
    try:
        while True:
            if gauge is not None:
                settle()
                found.gauge.append(gauge())
            for name in order:
                settle()
                turn, found.outputs[name] = _turn(runs[name], calls_of_a_turn[name])
                found.calls[name].append(turn)
            order.reverse()
            rounds, elapsed = len(found.calls[order[0]]), time.perf_counter() - start
            if progress is not None:
                progress(min(elapsed / seconds if seconds > 0 else 1.0, rounds / MIN_ROUNDS, 1.0))
            # A round that would end much too late is not begun.
            if rounds >= MIN_ROUNDS and elapsed + 0.5 * elapsed / rounds >= seconds:
                return found
    finally:
        if collecting:
            gc.enable()


def check_seconds(seconds: float) -> None:
    """Raise InputError for what is no time to spend: NaN and infinity would never be over."""
    if not 0 <= seconds < math.inf:
        raise InputError(
            f"seconds of timing must be a finite number, at least 0, but got {seconds:g}: give 10 or so."
        )


def _calls_of_a_turn(run: Callable[[], object]) -> int:
    for _ in range(2):  # the first calls pay for memory and for code that is generated on demand
        run()
    start = time.perf_counter()
    run()
    duration = max(time.perf_counter() - start, 1e-9)
    return min(max(round(TURN_SECONDS / duration), 1), MAX_CALLS_OF_A_TURN)


def _turn(run: Callable[[], object], calls: int) -> tuple[list[float], object]:
    output = run()
    durations = []
    for _ in range(calls):
        start = time.perf_counter()
        output = run()
        durations.append(time.perf_counter() - start)
    return durations, output
