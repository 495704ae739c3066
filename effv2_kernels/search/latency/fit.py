"""What readings add up to: the time of every block, and what networks take beside their blocks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import numpy as np

from effv2_kernels.families.efficientformer_v2.architecture import Architecture
from effv2_kernels.search.latency.table import BlockTime, Device, LatencyTable, time_in
from effv2_kernels.search.latency.task import Task, block_names


@dataclass(frozen=True)
class Reading:
    """One run of a network: times in the unit of its device.

    blocks: of each block, in order. whole: of the network as it is called, timed by itself. reference: of a
    network that is the same in all readings, timed beside this one; None where the device does not drift.
    """

    architecture: Architecture
    blocks: tuple[float, ...]
    whole: float
    reference: float | None = None

    @classmethod
    def of(
        cls, architecture: Architecture, task: Task, *, blocks: Any, whole: Any, reference: Any = None
    ) -> Reading:
        """That of values in a file. Raises TypeError or ValueError where they are no such times."""
        times = tuple(map(time_in, blocks))
        expected = len(block_names(architecture, task))
        if len(times) != expected:
            raise ValueError(f"it has the times of {len(times)} blocks, and its network has {expected}")
        beside = None if reference is None else time_in(reference, of_network=True)
        return cls(architecture, times, time_in(whole, of_network=True), beside)


def at_one_speed(readings: Sequence[Reading]) -> tuple[list[Reading], float]:
    """Readings as if the reference had taken its median time beside each; and that time.

    Times drift. Readings that no reference was beside stay as they are; where it was beside none, its
    time is 1.
    """
    references = [r.reference for r in readings if r.reference is not None]
    nominal = median(references) if references else 1.0
    found = []
    for reading in readings:
        scale = 1.0 if reading.reference is None else nominal / reading.reference
        blocks = tuple(scale * time for time in reading.blocks)
        found.append(replace(reading, blocks=blocks, whole=scale * reading.whole))
    return found, nominal


def table_of(
    readings: Sequence[Reading],
    device: Device,
    task: Task,
    reference: Architecture | None = None,
) -> LatencyTable:
    """The table that readings add up to, each ``at_one_speed`` with all others."""
    readings, nominal = at_one_speed(readings)
    seen: dict[str, dict[Architecture, list[float]]] = defaultdict(lambda: defaultdict(list))
    wholes: dict[Architecture, list[float]] = defaultdict(list)
    for reading in readings:
        wholes[reading.architecture].append(reading.whole)
        own: dict[str, list[float]] = defaultdict(list)
        names = block_names(reading.architecture, task)
        for name, time in zip(names, reading.blocks, strict=True):
            own[name].append(time)
        for name, times in own.items():
            seen[name][reading.architecture].append(sum(times) / len(times))
    blocks = {name: _block_time([median(times) for times in of.values()]) for name, of in seen.items()}
    measured = {architecture: median(times) for architecture, times in wholes.items()}
    call, step = _rest(measured, blocks, task)
    beside = None if reference is None else (reference, nominal)
    table = LatencyTable(device, task, blocks, call, step, beside)
    return replace(table, error=median(abs(table.predict(a) / time - 1) for a, time in measured.items()))


def _block_time(times: Sequence[float]) -> BlockTime:
    middle = median(times)
    # Of normal errors, that is two thirds of their standard deviation, and a median's error 1.25 of a mean's.
    deviation = 1.4826 * median(abs(time - middle) for time in times)
    spread = 1.25 * deviation / len(times) ** 0.5 / middle if middle > 0 else 0.0
    return BlockTime(middle, spread, len(times))


def _rest(
    measured: Mapping[Architecture, float], blocks: Mapping[str, BlockTime], task: Task
) -> tuple[float, float]:
    """What whole networks take beside their blocks, for a call and for each block.

    By least absolute errors, relative ones, and none of both below zero: a busy machine stops the longest
    networks most often, and squares of what that adds would decide alone.
    """
    from scipy.optimize import linprog

    names = [block_names(architecture, task) for architecture in measured]
    whole = np.array(list(measured.values()))
    left = 1 - np.array([sum(blocks[name].time for name in of) for of in names]) / whole
    factors = np.stack([1 / whole, [len(of) for of in names] / whole], 1)
    # Errors e >= |factors @ (call, step) - left|, of which the sum is to be the least.
    count, alike = len(whole), len({len(of) for of in names}) == 1
    errors = np.eye(count)
    found = linprog(
        np.concatenate([[0.0, 0.0], np.ones(count)]),
        A_ub=np.block([[factors, -errors], [-factors, -errors]]),
        b_ub=np.concatenate([left, -left]),
        # Networks of equally many blocks do not tell what each step takes.
        bounds=[(0, None), (0, 0 if alike else None), *[(0, None)] * count],
    )
    return float(found.x[0]), float(found.x[1])
