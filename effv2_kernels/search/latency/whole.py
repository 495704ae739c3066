"""Networks timed whole, in turns, so that a machine whose speed drifts says which is faster."""

from __future__ import annotations

import random
from collections.abc import Sequence

from effv2_kernels.engine import Progress
from effv2_kernels.families.efficientformer_v2.architecture import Architecture
from effv2_kernels.search.latency.kept import Clock, Kept


def whole_ratios(
    clock: Clock,
    networks: Sequence[Architecture],
    beside: Architecture,
    *,
    rounds: int,
    seed: int,
    progress: Progress = lambda what, share: None,
) -> list[list[float]]:
    """How many times as long as ``beside`` each network takes, once for every round.

    Each is timed between two runs of ``beside``, which say how slow the machine is at the moment; every round
    has another order.
    """
    reference = clock.runner(beside)
    runners = Kept(clock)
    ratios: list[list[float]] = [[] for _ in networks]
    for done in range(rounds):
        order = list(range(len(networks)))
        random.Random(f"{seed} {done}").shuffle(order)
        for place, number in enumerate(order):
            progress(f"round {done + 1} of {rounds}", (done + place / len(networks)) / rounds)
            follows = place > 0 and networks[number] in runners
            runner = runners[networks[number]]
            if not follows:  # the last run of the reference was before the network was made
                before = reference.whole()
            time = runner.whole()
            after = reference.whole()
            ratios[number].append(2 * time / (before + after))
            before = after
    progress("done", 1.0)
    return ratios
