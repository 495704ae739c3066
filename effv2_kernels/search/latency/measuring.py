"""Make the latency table of a search space: networks of it, timed in turns until the table stays as it is.

Times of one machine drift by a factor of two within minutes, and neighbours slow it down. So each network is
timed between two runs of one reference network, and counts by the ratio; the networks take turns, round by
round in another order; and the rounds end when two halves of them agree.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from effv2_kernels.engine import Progress
from effv2_kernels.errors import LatencyError, ModelError
from effv2_kernels.families.efficientformer_v2.architecture import Architecture
from effv2_kernels.search.journal import Journal
from effv2_kernels.search.latency.table import Device, LatencyTable, Reading, block_names, table_of
from effv2_kernels.search.space.space import SearchSpace

# Rounds of all networks.
FEWEST_ROUNDS, MOST_ROUNDS = 6, 40

# Each block is seen in so many networks at least, or in as many as were drawn.
_SIGHTINGS = 4
_MOST_DRAWN = 5000


class Running(Protocol):
    """A network on a device."""

    def whole(self) -> float: ...
    def blocks(self) -> tuple[float, ...]: ...


class Clock(Protocol):
    """What times networks of one img_size; see ``timer``."""

    device: Device
    img_size: tuple[int, int]
    classes: int

    def runner(self, architecture: Architecture) -> Running: ...


def carriers(space: SearchSpace, classes: int, generator: random.Random) -> list[Architecture]:
    """Random subnets that together have every block of the space, each in several of them.

    Blocks that random subnets seldom have, such as those of the widest stages beside the narrowest, come with
    subnets that were drawn on and on until they had them.
    """
    wanted = dict.fromkeys(_blocks_of(space, classes), _SIGHTINGS)
    found: list[Architecture] = []
    for _ in range(_MOST_DRAWN):
        if not any(wanted.values()):
            break
        drawn = space.sample(generator)
        new = {name for name in block_names(drawn, space.img_size, classes) if wanted.get(name, 0) > 0}
        if new and drawn not in found:
            found.append(drawn)
            for name in new:
                wanted[name] -= 1
    return found


def _blocks_of(space: SearchSpace, classes: int) -> set[str]:
    """Every block that some subnet has: by pairs of neighbouring widths, all else as large as it can be."""
    largest = space.largest()
    names: set[str] = set()
    for stage, choices in enumerate(space.stages):
        for width in choices.widths:
            for before in space.stages[stage - 1].widths if stage else (0,):
                for ratio in choices.ratios:
                    widths = list(largest.widths)
                    widths[stage] = width
                    if stage:
                        widths[stage - 1] = before
                    ratios = list(largest.block_ratios())
                    ratios[stage] = (ratio,) * len(ratios[stage])
                    names.update(
                        block_names(
                            Architecture(
                                tuple(widths), largest.depths, tuple(ratios), largest.late_attention()
                            ),
                            space.img_size,
                            classes,
                        )
                    )
    return names


class Readings:
    """What was read so far, in a file beside the table, so that who is interrupted goes on."""

    def __init__(self, path: Path, device: Device, space: SearchSpace, classes: int, seed: int) -> None:
        about = {"device": asdict(device), "space": json.loads(space.to_json())}
        about |= {"classes": classes, "seed": seed}
        self._journal = Journal(path, about, error=LatencyError, remedy="choose another --out")
        self.rounds = [self._round(record) for record in self._journal.records]

    def add(self, readings: Sequence[Reading]) -> None:
        """Those of a round, on disk before anything else happens."""
        self._journal.add({"readings": [_as_json(reading) for reading in readings]})
        self.rounds.append(self._round(self._journal.records[-1]))  # as who goes on has it

    def _round(self, record: Mapping[str, Any]) -> list[Reading]:
        try:
            return [_from_json(reading) for reading in record["readings"]]
        except (KeyError, TypeError, ModelError) as error:
            raise LatencyError(
                f"'{self._journal.path}' is damaged: remove it, or choose another --out."
            ) from error


def measure(
    space: SearchSpace,
    clock: Clock,
    out: Path,
    *,
    seed: int = 0,
    tolerance: float = 0.005,
    rounds: int = MOST_ROUNDS,
    progress: Progress = lambda what, share: None,
) -> LatencyTable:
    """The table of a space, written to ``out``; readings lie beside it, in ``<out>.readings``.

    tolerance: the rounds end when tables of every other one predict the networks within so much of each
    other, in the median. Raises LatencyError where nothing can be written, or for readings of something else.
    """
    generator = random.Random(seed)
    networks = carriers(space, clock.classes, generator)
    readings = Readings(out.with_name(out.name + ".readings"), clock.device, space, clock.classes, seed)
    beside = space.sample(generator)
    if len(readings.rounds) < rounds:
        reference = clock.runner(beside)
        runners: dict[Architecture, Running] = {}
        while len(readings.rounds) < rounds and not _settled(readings.rounds, clock, beside, tolerance):
            order = list(networks)
            random.Random(f"{seed} {len(readings.rounds)}").shuffle(order)
            made = []
            for done, architecture in enumerate(order):
                progress(
                    f"round {len(readings.rounds) + 1}",
                    min(1.0, (len(readings.rounds) + done / len(order)) / rounds),
                )
                if architecture not in runners:
                    runners[architecture] = clock.runner(architecture)
                made.append(read(architecture, runners[architecture], reference))
            readings.add(made)
    table = _table(readings.rounds, clock, beside)
    table.save(out)
    progress("done", 1.0)
    return table


def read(architecture: Architecture, runner: Running, reference: Running) -> Reading:
    """One reading, between two runs of the reference."""
    before = reference.whole()
    blocks, whole = runner.blocks(), runner.whole()
    return Reading(architecture, blocks, whole, (before + reference.whole()) / 2)


def _table(rounds: Sequence[Sequence[Reading]], clock: Clock, reference: Architecture) -> LatencyTable:
    readings = [reading for of_round in rounds for reading in of_round]
    return table_of(readings, clock.device, clock.img_size, clock.classes, reference)


def _settled(
    rounds: Sequence[Sequence[Reading]], clock: Clock, reference: Architecture, tolerance: float
) -> bool:
    """Whether the times of every other round say the same as those of the rounds between."""
    if len(rounds) < FEWEST_ROUNDS:
        return False
    halves = [_table(rounds[begin::2], clock, reference) for begin in (0, 1)]
    off = sorted(_disagreements(halves[0], halves[1], {r.architecture for r in rounds[0]}))
    return off[len(off) // 2] <= tolerance


def _disagreements(
    one: LatencyTable, other: LatencyTable, architectures: set[Architecture]
) -> Iterator[float]:
    for architecture in architectures:
        first, second = one.predict(architecture), other.predict(architecture)
        yield abs(first - second) / (first + second) * 2


def _as_json(reading: Reading) -> dict[str, Any]:
    return {
        "architecture": json.loads(reading.architecture.to_json()),
        "blocks": [float(f"{time:.6g}") for time in reading.blocks],
        "whole": reading.whole,
        "reference": reading.reference,
    }


def _from_json(found: dict[str, Any]) -> Reading:
    architecture = Architecture.from_json(json.dumps(found["architecture"]))
    return Reading(architecture, tuple(found["blocks"]), found["whole"], found["reference"])
