"""Evolution: a population within the budgets, whose best are mutated and crossed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from effv2_kernels.engine import Progress
from effv2_kernels.errors import SearchError
from effv2_kernels.families.efficientformer_v2.architecture import Architecture
from effv2_kernels.search.methods import sampling
from effv2_kernels.search.search import Found, Problem, Record
from effv2_kernels.search.step import Candidate, Option, Step


@dataclass(frozen=True)
class Evolution:
    """Evolution as in Once-for-All (Cai et al., arXiv 1908.09791); the fittest is the most accurate.

    The first population is random. In each generation the best ``parents`` (a share) of the population have
    children, as many as it is large: every other one is a mutation, 1 to ``mutations`` random steps of the
    space away from its parent, the rest have each stage from one of two parents. A child beyond a budget is
    made smaller by random steps; none is evaluated twice. The best of old and new are the next population.

    fill: after that, each is made larger by random steps as far as the budgets hold. evaluations: in all. It
    ends earlier where nothing new is found. Raises SearchError for numbers that make no sense.
    """

    evaluations: int = 200
    seed: int = 0
    population: int = 24
    parents: float = 0.25
    mutations: int = 4
    fill: bool = False

    def __post_init__(self) -> None:
        if min(self.evaluations, self.population, self.mutations) < 1 or not 0 < self.parents <= 1:
            raise SearchError(
                f"evaluations, population and mutations must be at least 1, and parents a share above 0; got "
                f"{self.evaluations}, {self.population}, {self.mutations} and {self.parents}."
            )

    def options(self) -> dict[str, Any]:
        return {"method": "evolution", **asdict(self)}

    def run(
        self,
        problem: Problem,
        record: Record = lambda step: None,
        progress: Progress = lambda what, share: None,
    ) -> Found:
        problem.check()
        generator = random.Random(f"evolution {self.seed}")
        met: set[Architecture] = set()
        population: list[Candidate] = []
        steps: list[Step] = []
        while len(met) < self.evaluations:
            options: list[Option] = []
            for place in range(min(self.population, self.evaluations - len(met))):
                child = self._child(problem, population, place, met, generator)
                if child is None:
                    break
                text, architecture = child
                progress(f"generation {len(steps)}", len(met) / self.evaluations)
                met.add(architecture)
                options.append(Option(text, problem.candidate(architecture)))
            if not options:
                break
            steps.append(_generation(len(steps), population, options))
            record(steps[-1])
            whole = [*population, *(option.candidate for option in options)]
            population = sorted(whole, key=sampling.rank)[: self.population]
        progress("done", 1.0)
        return Found(population[0], tuple(steps))

    def _child(
        self,
        problem: Problem,
        population: Sequence[Candidate],
        place: int,
        met: set[Architecture],
        generator: random.Random,
    ) -> tuple[str, Architecture] | None:
        """One that was not met, and where it comes from; None where there is none."""
        parents = [one.architecture for one in population[: max(2, round(self.parents * len(population)))]]

        def draw() -> Architecture:
            if not parents:
                made = problem.space.sample(generator)
            elif place % 2 == 0:
                made = generator.choice(parents)
                for _ in range(generator.randint(1, self.mutations)):
                    near = problem.space.neighbours(made)
                    made = generator.choice(near).architecture if near else made
            else:
                made = crossed(generator.choice(parents), generator.choice(parents), generator)
            return sampling.fitted(problem, made, generator, fill=self.fill)

        kind = "random" if not parents else "mutation" if place % 2 == 0 else "crossover"
        found = sampling.new(draw, met)
        if found is None and kind == "crossover":  # of few parents there are few, and soon known
            other = self._child(problem, population, place + 1, met, generator)
            return None if other is None else (f"mutation {place + 1}", other[1])
        return None if found is None else (f"{kind} {place + 1}", found)


def crossed(one: Architecture, other: Architecture, generator: random.Random) -> Architecture:
    """Each stage of one of two subnets: width, depth, ratios and attention together."""
    pair = (one.canonical(), other.canonical())
    from_which = [pair[generator.randrange(2)] for _ in range(4)]
    return Architecture(
        tuple(parent.widths[i] for i, parent in enumerate(from_which)),
        tuple(parent.depths[i] for i, parent in enumerate(from_which)),
        tuple(parent.block_ratios()[i] for i, parent in enumerate(from_which)),
        (from_which[2].late_attention()[0], from_which[3].late_attention()[1]),
    )


def _generation(number: int, before: Sequence[Candidate], options: Sequence[Option]) -> Step:
    best = min(range(len(options)), key=lambda i: sampling.rank(options[i].candidate))
    child = options[best].candidate
    if before and sampling.rank(before[0]) < sampling.rank(child):
        why = f"no child is better than the best so far, {before[0].accuracy:.2%}."
        return Step(number, before[0], tuple(options), None, why)
    why = f"{options[best].text} is the best so far, {child.accuracy:.2%}."
    return Step(number, child, tuple(options), best, why)
