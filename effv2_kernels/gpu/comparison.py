"""Measure what can be chosen beside tiles: the alternatives of each block, and a network in one launch."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from effv2_kernels.engine import Progress
from effv2_kernels.gpu.alternatives import Alternative
from effv2_kernels.gpu.choice import Chooser, NetworkChoice, known_tiles, network_times
from effv2_kernels.gpu.findings import Findings
from effv2_kernels.gpu.launch import LaunchError
from effv2_kernels.gpu.plan import Chosen
from effv2_kernels.gpu.timing import milliseconds_of_launches, milliseconds_of_plan


class Collector:
    """Takes the first alternative of each block, and keeps all of them.

    found: (number of the block, alternatives) in order; the number is None for the scale and shift of an
    output.
    """

    def __init__(self) -> None:
        self.found: list[tuple[int | None, Sequence[Alternative]]] = []

    def __call__(self, number: int | None, alternatives: Sequence[Alternative], precision: str) -> Chosen:
        self.found.append((number, alternatives))
        return Chosen(next((a for a in alternatives if a.launches), alternatives[0]))

    @property
    def is_choice(self) -> bool:
        """Whether there is more to find out than the tiles."""
        return any(len(alternatives) > 1 or not alternatives[0].trusted for _, alternatives in self.found)


def compare_alternatives(
    collected: Collector, chooser: Chooser, findings: Findings, precision: str, progress: Progress
) -> None:
    """Check what has to be, and time the alternatives of each block that has several, where not known."""
    found = [(number, alternatives) for number, alternatives in collected.found if number is not None]
    for done, (number, alternatives) in enumerate(found):
        progress(f"block {number}", done / len(found))
        possible = [a for a in alternatives if a.launches]
        accepted = [a for a in possible if a.trusted or chooser.verdict(number, a, precision).passed]
        for alternative in accepted if len(possible) > 1 else []:
            tiles = known_tiles(alternative, findings)
            if tiles is None:
                continue
            kept, key = findings.times(type(alternative.launches[0])), alternative.key(tiles)
            if kept.number(key) is not None:
                continue
            try:
                kept.add({key: f"{milliseconds_of_launches(alternative.launches, tiles):.6f}"})
            except LaunchError as error:
                if alternative.trusted:
                    raise
                findings.warn(f"{alternative.name} was not measured: {error}")


def compare_networks(choice: NetworkChoice, findings: Findings, images: Tensor) -> None:
    """Time the one launch and the single ones, where there is one that is right and it is not known."""
    one = choice.one
    if one is None or network_times(choice.plan, one, findings) is not None:
        return
    if one.trusted or choice.verdict().passed:
        kept = findings.times(type(one.launches[0]))
        kept.add({plan.key: f"{milliseconds_of_plan(plan, images):.6f}" for plan in (choice.plan, one)})


def part_of(progress: Progress, begin: float, end: float) -> Progress:
    """Progress of a part of the work, from one share of the whole to another."""
    return lambda what, share: progress(what, begin + share * (end - begin))
