"""What readings add up to: the time of every block, and what networks take beside their blocks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

import numpy as np

from effv2_kernels.families.efficientformer_v2.architecture import Architecture
from effv2_kernels.search.latency.table import BlockTime, Device, LatencyTable
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


def table_of(
    readings: Sequence[Reading],
    device: Device,
    task: Task,
    reference: Architecture | None = None,
) -> LatencyTable:
    """The table that readings add up to. Times drift: each counts by that of the reference beside it."""
    references = [r.reference for r in readings if r.reference is not None]
    nominal = median(references) if references else 1.0
    seen: dict[str, dict[Architecture, list[float]]] = defaultdict(lambda: defaultdict(list))
    wholes: dict[Architecture, list[float]] = defaultdict(list)
    for reading in readings:
        scale = 1.0 if reading.reference is None else nominal / reading.reference
        wholes[reading.architecture].append(scale * reading.whole)
        own: dict[str, list[float]] = defaultdict(list)
        names = block_names(reading.architecture, task)
        for name, time in zip(names, reading.blocks, strict=True):
            own[name].append(scale * time)
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
