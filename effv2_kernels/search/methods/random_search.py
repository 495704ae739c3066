"""Random search: what any other search must beat with as many evaluations."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass
from typing import Any

from effv2_kernels.engine import Progress
from effv2_kernels.errors import SearchError
from effv2_kernels.families.efficientformer_v2.architecture import Architecture
from effv2_kernels.search.methods import sampling
from effv2_kernels.search.search import Found, Problem, Record
from effv2_kernels.search.step import Candidate, Option, Step


@dataclass(frozen=True)
class RandomSearch:
    """The most accurate of so many random subnets within the budgets, all different.

    Each is a uniform draw, made smaller by random steps until the budgets hold; fill: and then larger, as far
    as they do. It ends earlier where the budgets leave nothing new. Raises SearchError for fewer than one
    evaluation.
    """

    evaluations: int = 200
    seed: int = 0
    fill: bool = False

    def __post_init__(self) -> None:
        if self.evaluations < 1:
            raise SearchError(f"a search needs at least 1 evaluation; got {self.evaluations}.")

    def options(self) -> dict[str, Any]:
        return {"method": "random", **asdict(self)}

    def run(
        self,
        problem: Problem,
        record: Record = lambda step: None,
        progress: Progress = lambda what, share: None,
    ) -> Found:
        problem.check()
        generator = random.Random(f"random search {self.seed}")
        met: set[Architecture] = set()
        best: Candidate | None = None
        steps: list[Step] = []

        def draw() -> Architecture:
            drawn = problem.space.sample(generator)
            return sampling.fitted(problem, drawn, generator, fill=self.fill)

        while len(met) < self.evaluations and (drawn := sampling.new(draw, met)) is not None:
            progress(f"draw {len(met) + 1} of {self.evaluations}", len(met) / self.evaluations)
            met.add(drawn)
            one = problem.candidate(drawn)
            better = best is None or sampling.rank(one) < sampling.rank(best)
            why = "it is the best so far." if better else "it is no better than the best so far."
            best = one if better or best is None else best
            options = (Option(f"draw {len(met)}", one),)
            steps.append(Step(len(steps), best, options, 0 if better else None, why))
            record(steps[-1])
        progress("done", 1.0)
        assert best is not None  # the first draw is always new
        return Found(best, tuple(steps))
