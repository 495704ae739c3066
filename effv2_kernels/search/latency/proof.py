"""Whether a latency table holds: random networks, timed whole, beside what it predicts of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from effv2_kernels.engine import Progress
from effv2_kernels.errors import LatencyError
from effv2_kernels.families.efficientformer_v2.architecture import Architecture
from effv2_kernels.search.latency.kept import Clock
from effv2_kernels.search.latency.table import LARGEST_ERROR, LatencyTable
from effv2_kernels.search.latency.task import Task
from effv2_kernels.search.latency.whole import whole_ratios
from effv2_kernels.search.panel import panel
from effv2_kernels.search.space.space import SearchSpace

# The least that a table is relied on for.
_LEAST_CORRELATION, _LEAST_CORRELATION_NEAR = 0.98, 0.9

# Around the median of the measured times: among networks of one latency, a search needs their order.
_AROUND = 0.15
_FEWEST = 3  # networks that have a correlation


@dataclass(frozen=True)
class Row:
    """One network: its times in the unit of the table."""

    architecture: Architecture
    predicted: float
    measured: float

    @property
    def error(self) -> float:
        """Relative, with its sign."""
        return self.predicted / self.measured - 1


@dataclass(frozen=True)
class Proof:
    """What was found. Printing it gives a table."""

    rows: tuple[Row, ...]
    unit: str

    @property
    def median_error(self) -> float:
        return median(abs(row.error) for row in self.rows)

    @property
    def correlation(self) -> float:
        """Spearman's, of all networks; NaN where they are too few to have one."""
        return _spearman(self.rows)

    @property
    def near(self) -> tuple[Row, ...]:
        """Those within 15 % of the median of all times."""
        middle = median(row.measured for row in self.rows)
        return tuple(row for row in self.rows if abs(row.measured / middle - 1) <= _AROUND)

    @property
    def correlation_near(self) -> float:
        """Spearman's, of those."""
        return _spearman(self.near)

    @property
    def doubts(self) -> list[str]:
        """What does not hold that should: nothing where the table can be relied on."""
        found = []
        if self.median_error > LARGEST_ERROR:
            found.append(
                f"the median error is {self.median_error:.1%}, and {LARGEST_ERROR:.0%} at most is good"
            )
        for what, correlation, least in (
            ("", self.correlation, _LEAST_CORRELATION),
            (" near the median", self.correlation_near, _LEAST_CORRELATION_NEAR),
        ):
            if correlation < least:
                found.append(f"the correlation{what} is {correlation:.3f}, and at least {least} is good")
        return found

    def __str__(self) -> str:
        from effv2_kernels.tables import text_table

        body = [
            (_sizes(row.architecture), f"{row.predicted:.3f}", f"{row.measured:.3f}", f"{row.error:+.1%}")
            for row in sorted(self.rows, key=lambda row: row.measured)
        ]
        header = ("widths | depths | attention", f"predicted, {self.unit}", f"measured, {self.unit}", "error")
        worst = max(abs(row.error) for row in self.rows)
        return (
            f"{text_table(header, body, left=1)}\n"
            f"{len(self.rows)} random networks: median error {self.median_error:.1%}, largest {worst:.1%}; "
            f"Spearman's correlation {self.correlation:.3f}, and {self.correlation_near:.3f} among the "
            f"{len(self.near)} within {_AROUND:.0%} of the median"
        )


def prove(
    table: LatencyTable,
    space: SearchSpace,
    clock: Clock,
    *,
    networks: int = 50,
    seed: int,
    rounds: int = 9,
    progress: Progress = lambda what, share: None,
) -> Proof:
    """Time random networks whole and in turns, each between two runs of a reference network.

    The reference says how slow the machine is at the moment; its own time is the table's. Of a space with
    fewer networks all are timed. Raises LatencyError where the table is of other images, or lacks the
    reference or blocks of the networks.
    """
    table.require_task(Task.of(space, clock.task.classes))
    networks = min(networks, space.subnets())
    generator = random.Random(f"proof {seed}")
    drawn: list[Architecture] = []
    while len(drawn) < networks:
        one = space.sample(generator)
        if one not in drawn:
            drawn.append(one)
    predicted = [table.predict(architecture) for architecture in drawn]
    if table.reference is None:
        raise LatencyError(
            "this latency table was not measured beside a reference network, as a proof needs it."
        )
    beside, nominal = table.reference
    ratios = whole_ratios(clock, drawn, beside, rounds=rounds, seed=seed, progress=progress)
    rows = [
        Row(architecture, time, nominal * median(found))
        for architecture, time, found in zip(drawn, predicted, ratios, strict=True)
    ]
    return Proof(tuple(rows), table.device.unit)


def draw(proof: Proof, path: Path) -> None:
    """Predicted against measured times, with the line on which they are equal. path: .svg or .png.

    Raises as ``panel``.
    """
    with panel(path, 4.8, 4.4) as axes:
        measured = [row.measured for row in proof.rows]
        ends = min(measured), max(measured)
        axes.plot(ends, ends, color="#999999", linewidth=1, zorder=1)
        axes.scatter(measured, [row.predicted for row in proof.rows], s=16, color="#0072B2", zorder=2)
        axes.set_xlabel(f"measured, {proof.unit}")
        axes.set_ylabel(f"predicted by the sum of blocks, {proof.unit}")
        axes.set_title(
            f"median error {proof.median_error:.1%}, Spearman's correlation {proof.correlation:.3f}",
            fontsize="medium",
        )


def _spearman(rows: Sequence[Row]) -> float:
    from scipy.stats import spearmanr

    if len(rows) < _FEWEST:
        return float("nan")
    return float(spearmanr([row.predicted for row in rows], [row.measured for row in rows]).statistic)


def _sizes(architecture: Architecture) -> str:
    return " | ".join(
        " ".join(map(str, values))
        for values in (architecture.widths, architecture.depths, architecture.late_attention())
    )
