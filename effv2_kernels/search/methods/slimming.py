"""Greedy slimming: from the largest subnet down, each time by the step that costs the least accuracy."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from effv2_kernels.engine import Progress
from effv2_kernels.errors import SearchError, UnknownNameError
from effv2_kernels.search.mes import MES
from effv2_kernels.search.methods import filling
from effv2_kernels.search.search import Found, Problem, Record
from effv2_kernels.search.step import Candidate, Option, Step

GAINS = ("mes", "exceeding")


@dataclass(frozen=True)
class Slimming:
    """The search of Li et al., arXiv 2212.08059, section 3.3; slimming is Yu and Huang's (arXiv 1903.05134).

    From the largest subnet, every action of the frontier is evaluated: one block less, one attention less,
    one width step less, one ratio step less in one block. The one with the least drop of accuracy per gain in
    MES is taken, until every budget holds.

    gain: in what. "mes" is the published rule: the whole score, whichever budgets hold already. "exceeding"
    is for several budgets: the score of those metrics alone whose budgets do not hold yet, so that no
    accuracy is given for what nobody needs; where none of these counts in the score, the whole one.

    Of equal scores the larger gain is taken, then the first in the order of the frontier. An action without a
    gain, as a measured table may have where a smaller block is no faster, is taken where there is no other.

    fill: at the end go up again, as far as every budget has room (see ``filling``).

    least_drop: what smaller drops count as, from -1, which takes all as they are, to 1. On few images many
    accuracies rise by chance, and a drop below zero per gain is the better the less is gained: those rises
    would be collected one by one. With the default, 0, a rise is no drop, and of all such actions the one
    with the largest gain is taken. Chosen here; the paper, which used 50,000 images, says nothing of rises.

    Raises UnknownNameError for another gain, SearchError for a least drop that is no share.
    """

    gain: str = "mes"
    fill: bool = False
    least_drop: float = 0.0

    def __post_init__(self) -> None:
        if self.gain not in GAINS:
            raise UnknownNameError.of("gain", self.gain, GAINS)
        if not -1 <= self.least_drop <= 1:
            raise SearchError(f"the least drop that counts must be in -1 ... 1; got {self.least_drop}.")

    def options(self) -> dict[str, Any]:
        return {"method": "slimming", **asdict(self)}

    def run(
        self,
        problem: Problem,
        record: Record = lambda step: None,
        progress: Progress = lambda what, share: None,
    ) -> Found:
        problem.check()
        now = problem.candidate(problem.space.largest())
        steps = [Step(0, now, (), None, "slimming begins with the largest subnet.")]
        record(steps[0])
        far = _excess(problem, now)
        while exceeded := problem.budgets.exceeded(now.metrics):
            done = 1 - _excess(problem, now) / far
            score = self._score(problem, exceeded)
            actions, options = problem.space.frontier(now.architecture), []
            for count, action in enumerate(actions):
                progress(f"step {len(steps)}: {count + 1} of {len(actions)}", done)
                candidate = problem.candidate(action.architecture)
                options.append(self._option(action.text, now, candidate, score))
            taken = min(range(len(options)), key=lambda i: _rank(options[i], i))
            now = options[taken].candidate
            steps.append(
                Step(len(steps), now, tuple(options), taken, self._why(problem, options, taken, score))
            )
            record(steps[-1])
        for step in filling.fill(problem, steps, progress) if self.fill else ():
            steps.append(step)
            record(step)
        progress("done", 1.0)
        return Found(steps[-1].chosen, tuple(steps))

    def _score(self, problem: Problem, exceeded: list[str]) -> MES:
        part = problem.score.of(exceeded) if self.gain == "exceeding" else None
        return problem.score if part is None else part

    def _option(self, text: str, before: Candidate, after: Candidate, score: MES) -> Option:
        drop = before.accuracy - after.accuracy
        gain = score(after.metrics) - score(before.metrics)
        return Option(text, after, drop, gain, max(drop, self.least_drop) / gain if gain > 0 else None)

    def _why(self, problem: Problem, options: list[Option], taken: int, score: MES) -> str:
        best = options[taken]
        assert best.drop is not None
        least = f", which counts as {self.least_drop:+.2%}," if best.drop < self.least_drop else ""
        of = " and ".join(name for name, exponent in score.exponents.items() if exponent)
        if best.score is None:
            reason = f"no action gains in the score of {of}, and this one drops the least, {best.drop:+.2%}"
        else:
            reason = (
                f"it drops {best.drop:+.2%}{least} for a gain of {best.gain:+.4g} in the score of {of}: "
                f"{best.score:.3g}, the least of {len(options)} actions"
            )
            others = [(_rank(option, i), option) for i, option in enumerate(options) if i != taken]
            if others:
                second = min(others, key=lambda other: other[0])[1]
                if second.score is not None:
                    tie = ", a tie" if second.score == best.score else ""
                    reason += f" (the next is {second.text}, {second.score:.3g}{tie})"
        return f"{best.text} is taken: {reason}. {_standing(problem, best.candidate)}."


def _rank(option: Option, place: int) -> tuple[bool, float, float, int]:
    """The least is the best."""
    assert option.drop is not None
    assert option.gain is not None
    return option.score is None, option.drop if option.score is None else option.score, -option.gain, place


def _excess(problem: Problem, candidate: Candidate) -> float:
    """How far beyond its budgets a subnet is: the logarithm of the worst ratio."""
    limits = problem.budgets.limits
    return max(math.log(max(candidate.metrics[name], 1e-300) / limit) for name, limit in limits.items())


def _standing(problem: Problem, now: Candidate) -> str:
    limits = problem.budgets.limits
    beyond = [
        f"{problem.costs.quantity(name, now.metrics[name])} of {limits[name]:g}"
        for name in problem.budgets.exceeded(now.metrics)
    ]
    return f"Still beyond a budget: {', '.join(beyond)}" if beyond else "Every budget holds"
