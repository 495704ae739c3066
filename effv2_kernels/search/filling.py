"""What the budgets leave: from a subnet that a search found, up again as far as every budget holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from effv2_kernels.engine import Progress
from effv2_kernels.search import sampling
from effv2_kernels.search.search import Found, Problem, Record, Search
from effv2_kernels.search.step import Option, Step


@dataclass(frozen=True)
class Filling:
    """A search, and then steps larger from what it found, each the most accurate, until none is left.

    Slimming ends with the first subnet within the budgets, which may be well within them: its last step was
    as large as a step is. Whatever the accuracies say, the larger one is taken, as it seldom stays worse once
    it is fine-tuned. Chosen here; nothing is published of it.
    """

    search: Search

    def options(self) -> dict[str, Any]:
        return {**self.search.options(), "fill": True}

    def run(
        self,
        problem: Problem,
        record: Record = lambda step: None,
        progress: Progress = lambda what, share: None,
    ) -> Found:
        found = self.search.run(problem, record, progress)
        now, steps = found.best, list(found.steps)
        while True:
            actions = [
                action
                for action in problem.space.growth(now.architecture)
                if problem.fits(action.architecture)
            ]
            if not actions:
                break
            options = []
            for count, action in enumerate(actions):
                progress(f"filling, step {len(steps)}: {count + 1} of {len(actions)}", 1.0)
                options.append(Option(action.text, problem.candidate(action.architecture)))
            taken = min(range(len(options)), key=lambda i: sampling.rank(options[i].candidate))
            now = options[taken].candidate
            why = (
                f"{options[taken].text} is taken: of the {len(options)} larger subnets that every budget has "
                f"room for, it is the most accurate."
            )
            steps.append(Step(len(steps), now, tuple(options), taken, why))
            record(steps[-1])
        progress("done", 1.0)
        return Found(now, tuple(steps))
