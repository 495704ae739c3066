"""Make the latency table of a search space: networks of it, timed in turns until the table stays as it is.

Times of one machine drift by a factor of two within minutes, and neighbours slow it down. So each network is
timed between two runs of one reference network, and counts by the ratio; the networks take turns, round by
round in another order; and the rounds end when two halves of them agree.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from effv2_kernels.engine import Progress
from effv2_kernels.errors import LatencyError, ModelError
from effv2_kernels.families.efficientformer_v2 import Architecture, sizes
from effv2_kernels.search.journal import Journal
from effv2_kernels.search.latency.fit import Reading, table_of
from effv2_kernels.search.latency.kept import Clock, Kept, Running
from effv2_kernels.search.latency.table import DAMAGED, LatencyTable
from effv2_kernels.search.latency.task import Task, block_names
from effv2_kernels.search.space.space import SearchSpace, StageChoices

# Rounds of all networks.
FEWEST_ROUNDS, MOST_ROUNDS = 6, 40

# Each block is seen in so many networks at least, or in all that have it.
_SIGHTINGS = 4
_MOST_DRAWN = 5000


def carriers(space: SearchSpace, task: Task, generator: random.Random) -> list[Architecture]:
    """Random subnets that together have every block of the space, each in several of them.

    Blocks that random subnets seldom have, such as those of the widest stages beside the narrowest, come with
    subnets that were drawn on and on until they had them, and at last with subnets that cannot but have
    them.
    """
    parts = _parts_with_blocks(space, task)
    wanted = dict.fromkeys(parts, _SIGHTINGS)
    found: dict[Architecture, None] = {}

    def take(drawn: Architecture) -> None:
        new = {name for name in block_names(drawn, task) if wanted.get(name, 0) > 0}
        if new and drawn not in found:
            found[drawn] = None
            for name in new:
                wanted[name] -= 1

    for _ in range(_MOST_DRAWN):
        if not any(wanted.values()):
            break
        take(space.sample(generator))
    for name, part in parts.items():
        for _ in range(2 * _SIGHTINGS):  # some are the same, or were there already
            if wanted[name]:
                take(part.sample(generator))
    return list(found)


def _parts_with_blocks(space: SearchSpace, task: Task) -> dict[str, SearchSpace]:
    """Every block that some subnet has, and the part of the space whose subnets all have it.

    Blocks depend on the widths of their stage and of the one before, on their ratio, and on attention,
    which the deepest stages have most of.
    """
    parts: dict[str, SearchSpace] = {}
    for stage, choices in enumerate(space.stages):
        before = space.stages[stage - 1].widths if stage else (None,)
        for width, ratio, width_before in product(choices.widths, choices.ratios, before):
            stages = list(space.stages)
            stages[stage] = StageChoices(
                (width,), choices.depths[-1:], (ratio,), choices.attention_blocks[-1:]
            )
            if width_before is not None:
                stages[stage - 1] = replace(stages[stage - 1], widths=(width_before,))
            part = replace(space, stages=(stages[0], stages[1], stages[2], stages[3]))
            ends = (set(block_names(end, task)) for end in (part.smallest(), part.largest()))
            for name in sorted(set.intersection(*ends)):
                parts.setdefault(name, part)
    return parts


class Readings:
    """What was read so far, in a file beside the table, so that who is interrupted goes on."""

    def __init__(
        self, path: Path, clock: Clock, space: SearchSpace, networks: Sequence[Architecture], seed: int
    ) -> None:
        about = {"device": asdict(clock.device), "space": json.loads(space.to_json())}
        about |= {"classes": clock.task.classes, "seed": seed}
        self._task, self._networks = clock.task, set(networks)
        self._journal = Journal(path, about, error=LatencyError, remedy="choose another --out")
        self.rounds = [self._round(record) for record in self._journal.records]

    def add(self, readings: Sequence[Reading]) -> None:
        """Those of a round, on disk before anything else happens."""
        self._journal.add({"readings": [_as_json(reading) for reading in readings]})
        self.rounds.append(self._round(self._journal.records[-1]))  # as who goes on has it

    def _round(self, record: Mapping[str, Any]) -> list[Reading]:
        try:
            found = [_from_json(reading, self._task) for reading in record["readings"]]
        except (*DAMAGED, ModelError) as error:
            raise self._journal.damaged(f"{type(error).__name__}: {error}") from error
        if {reading.architecture for reading in found} != self._networks:
            raise self._journal.damaged("a round is of other networks than this space's")
        return found


@dataclass(frozen=True)
class Measured:
    """A table, and how far it can be relied on.

    rounds: that it is made of. disagreement: of tables of every other round, in the median over networks and
    relative; infinite of too few rounds to say.
    """

    table: LatencyTable
    rounds: int
    disagreement: float

    def doubts(self, tolerance: float) -> list[str]:
        """Why the machine was too busy, or the rounds were too few, for a table to rely on: in sentences."""
        found = []
        if math.isinf(self.disagreement):
            found.append(f"{self.rounds} rounds are too few to say how far the table can be relied on.")
        elif self.disagreement > tolerance:
            found.append(
                f"After {self.rounds} rounds, tables of every other one still disagree by "
                f"{self.disagreement:.1%}, and {tolerance:.1%} are asked for."
            )
        return [*found, *self.table.doubts()]


def measure(
    space: SearchSpace,
    clock: Clock,
    out: Path,
    *,
    seed: int = 0,
    tolerance: float = 0.005,
    rounds: int = MOST_ROUNDS,
    progress: Progress = lambda what, share: None,
) -> Measured:
    """The table of a space, written to ``out``; readings lie beside it, in ``<out>.readings``.

    tolerance: the rounds end when tables of every other one predict the networks within so much of each
    other, in the median. Raises LatencyError where nothing can be written, or for readings of something else.
    """
    generator = random.Random(seed)
    networks = carriers(space, clock.task, generator)
    beside = space.sample(generator)
    reference = clock.runner(beside)  # before anything is written: it refuses what cannot be timed
    path = out.with_name(out.name + ".readings")
    readings = Readings(path, clock, space, networks, seed)
    runners = Kept(clock)
    disagreement = _disagreement(readings.rounds, clock, beside)
    while len(readings.rounds) < rounds and disagreement > tolerance:
        order = list(networks)
        random.Random(f"{seed} {len(readings.rounds)}").shuffle(order)
        made = []
        for done, architecture in enumerate(order):
            progress(
                f"round {len(readings.rounds) + 1}",
                min(1.0, (len(readings.rounds) + done / len(order)) / rounds),
            )
            made.append(read(architecture, runners[architecture], reference))
        readings.add(made)
        disagreement = _disagreement(readings.rounds, clock, beside)
    table = _table(readings.rounds, clock, beside)
    table.save(out)
    progress("done", 1.0)
    return Measured(table, len(readings.rounds), disagreement)


def read(architecture: Architecture, runner: Running, reference: Running) -> Reading:
    """One reading, between two runs of the reference."""
    before = reference.whole()
    blocks, whole = runner.blocks(), runner.whole()
    return Reading(architecture, blocks, whole, (before + reference.whole()) / 2)


def _table(rounds: Sequence[Sequence[Reading]], clock: Clock, reference: Architecture) -> LatencyTable:
    readings = [reading for of_round in rounds for reading in of_round]
    return table_of(readings, clock.device, clock.task, reference)


def _disagreement(rounds: Sequence[Sequence[Reading]], clock: Clock, reference: Architecture) -> float:
    """How far the times of every other round are from those of the rounds between; see ``Measured``."""
    if len(rounds) < FEWEST_ROUNDS:
        return math.inf
    halves = [_table(rounds[begin::2], clock, reference) for begin in (0, 1)]
    return median(_disagreements(halves[0], halves[1], {r.architecture for r in rounds[0]}))


def _disagreements(
    one: LatencyTable, other: LatencyTable, architectures: set[Architecture]
) -> Iterator[float]:
    for architecture in architectures:
        first, second = one.predict(architecture), other.predict(architecture)
        yield abs(first - second) / (first + second) * 2


def _as_json(reading: Reading) -> dict[str, Any]:
    return {
        "architecture": sizes(reading.architecture),
        "blocks": [float(f"{time:.6g}") for time in reading.blocks],
        "whole": reading.whole,
        "reference": reading.reference,
    }


def _from_json(found: dict[str, Any], task: Task) -> Reading:
    architecture = Architecture.from_json(json.dumps(found["architecture"]))
    times = {name: found[name] for name in ("blocks", "whole", "reference")}
    return Reading.of(architecture, task, **times)
