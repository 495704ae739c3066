"""What the budgets leave: from a subnet within them up again, as far as every budget holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from effv2_kernels.engine import Progress
from effv2_kernels.search.methods import sampling
from effv2_kernels.search.search import Problem
from effv2_kernels.search.step import Option, Step


def fill(problem: Problem, steps: Sequence[Step], progress: Progress) -> Iterator[Step]:
    """Steps larger from where ``steps`` end, each the most accurate that fits, until none is left.

    Slimming ends with the first subnet within the budgets, which may be well within them: its last step was
    as large as a step is. Whatever the accuracies say, the larger one is taken, as it seldom stays worse once
    it is fine-tuned. Chosen here; nothing is published of it.
    """
    number, now = len(steps), steps[-1].chosen
    while actions := sampling.room(problem, now.architecture):
        options = []
        for count, action in enumerate(actions):
            progress(f"filling, step {number}: {count + 1} of {len(actions)}", 1.0)
            options.append(Option(action.text, problem.candidate(action.architecture)))
        taken = min(range(len(options)), key=lambda i: sampling.rank(options[i].candidate))
        now = options[taken].candidate
        yield Step(number, now, tuple(options), taken, _why(options[taken], len(options)))
        number += 1


def _why(taken: Option, count: int) -> str:
    return (
        f"{taken.text} is taken: of the {count} larger subnets that every budget has room for, it is the "
        f"most accurate."
    )
