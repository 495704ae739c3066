"""What every search is given, what it finds, and how one is run so that nothing is lost."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from effv2_kernels.engine import Progress
from effv2_kernels.errors import ModelError, SearchError
from effv2_kernels.families.efficientformer_v2.architecture import Architecture
from effv2_kernels.search.budgets import Budgets
from effv2_kernels.search.cost import Costs
from effv2_kernels.search.evaluation import Evaluator, Remembered
from effv2_kernels.search.journal import Journal
from effv2_kernels.search.mes import MES, over_devices
from effv2_kernels.search.space.space import SearchSpace
from effv2_kernels.search.step import Candidate, Step

Record = Callable[[Step], None]
EVALUATIONS, STEPS = "evaluations.jsonl", "steps.jsonl"


@dataclass(frozen=True)
class Problem:
    """An accurate subnet within all budgets is sought; mes says how small and fast is good.

    Latency in ``mes`` is that of all tables of ``costs``; see ``over_devices``. The ablations of the paper
    are other exponents and budgets: parameters alone, or latency alone.
    """

    costs: Costs
    budgets: Budgets
    mes: MES
    evaluator: Evaluator

    def check(self) -> None:
        """Raise SearchError where the space has nothing within the budgets, or nothing measures a metric."""
        self.budgets.check(self.costs)
        self.score(self.costs(self.space.smallest()))

    @property
    def space(self) -> SearchSpace:
        return self.costs.space

    @property
    def score(self) -> MES:
        """The score by the names that the metrics have."""
        several = len(self.costs.tables) > 1
        return over_devices(self.mes, self.costs.tables) if several else self.mes

    def candidate(self, architecture: Architecture) -> Candidate:
        """All that is known of a subnet, with its accuracy."""
        metrics = self.costs(architecture)
        accuracy = self.evaluator.accuracy(architecture.canonical())
        return Candidate(architecture.canonical(), accuracy, metrics, self.score(metrics))

    def fits(self, architecture: Architecture) -> bool:
        """Whether every budget holds."""
        return not self.budgets.exceeded(self.costs(architecture))


@dataclass(frozen=True)
class Found:
    """What a search found, and the way there."""

    best: Candidate
    steps: tuple[Step, ...]

    def candidates(self) -> list[Candidate]:
        """Every subnet that was evaluated, once each, in the order of the first time."""
        met = [one for s in self.steps for one in (*(o.candidate for o in s.options), s.chosen)]
        return list({one.architecture: one for one in met}.values())


class Search(Protocol):
    """A way to search. What it finds depends on nothing but its options and the problem."""

    def options(self) -> dict[str, Any]:
        """What it was made with, as JSON values by name, and its "method"."""

    def run(
        self,
        problem: Problem,
        record: Record = lambda step: None,
        progress: Progress = lambda what, share: None,
    ) -> Found:
        """Search. record: called with every step as soon as it is done.

        Raises SearchError where no subnet can be within the budgets, and what evaluating raises.
        """


def run_in(
    folder: Path,
    search: Search,
    problem: Problem,
    *,
    resume: bool = False,
    evaluations: Path | None = None,
    record: Record = lambda step: None,
    progress: Progress = lambda what, share: None,
) -> Found:
    """Run a search that may be killed at any moment: its files lie in ``folder``, made where it is not there.

    ``steps.jsonl`` has a line for each step, ``evaluations.jsonl`` one for each accuracy. resume: go on with
    the search that lies there; it ends as if it had not been killed. evaluations: another file for these,
    which several searches of one supernet may share, one after the other. record: called with every step,
    those that were done before as well.

    Raises SearchError where a search lies there and ``resume`` is not given, where it is another one, or
    where another process writes these files.
    """
    problem.check()
    steps = folder / STEPS
    if steps.exists() and not resume:
        raise SearchError(
            f"'{folder}' has a search already: go on with it (--resume), or choose another folder."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SearchError(f"the folder '{folder}' cannot be made: {error.strerror}.") from error
    remembered = (
        Remembered(problem.evaluator, folder / EVALUATIONS, remedy="choose another folder")
        if evaluations is None
        else Remembered(problem.evaluator, evaluations, remedy="choose another --evaluations-file")
    )
    # The journal last: it claims the folder.
    with closing(remembered), closing(Journal(steps, _about(search, problem))) as journal:
        return search.run(replace(problem, evaluator=remembered), _recording(journal, record), progress)


def _recording(journal: Journal, record: Record) -> Record:
    """Steps as the journal has them already, then new ones into it."""
    count = 0

    def write(step: Step) -> None:
        nonlocal count
        if count == len(journal.records):
            journal.add(step.to_json())
        elif _step(journal, count) != step:
            raise SearchError(
                f"step {step.number} is not what '{journal.path}' says of it, so that the search cannot "
                f"go on: the file was changed, or was written by another version. Choose another folder."
            )
        count += 1
        record(step)

    return write


def _step(journal: Journal, number: int) -> Step:
    try:
        return Step.from_json(journal.records[number])
    except (KeyError, TypeError, ValueError, AttributeError, ModelError) as error:
        raise journal.damaged(f"step {number} is none") from error


def _about(search: Search, problem: Problem) -> dict[str, Any]:
    return {
        "effv2_search": 1,
        "evaluator": problem.evaluator.identity,
        "costs": problem.costs.identity,
        "budgets": dict(problem.budgets.limits),
        "exponents": dict(problem.mes.exponents),
        "references": dict(problem.mes.references),
        "search": search.options(),
    }
