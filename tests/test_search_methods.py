"""Slimming, evolution and random search, on accuracies that are a formula: budgets, seeds, kills, reasons."""

import itertools
import json
import math
import random
from dataclasses import replace

import pytest
from searches import SPACE, TABLES, Formula, every, problem

from effv2_kernels.errors import SearchError, UnknownNameError
from effv2_kernels.search.budgets import Budgets
from effv2_kernels.search.mes import MES
from effv2_kernels.search.methods.evolution import Evolution, crossed
from effv2_kernels.search.methods.random_search import RandomSearch
from effv2_kernels.search.methods.slimming import Slimming
from effv2_kernels.search.search import run_in
from effv2_kernels.search.step import Step, explain

SEARCHES = {
    "slimming": Slimming(),
    "exceeding": Slimming("exceeding"),
    "evolution": Evolution(40, 3, population=8),
    "random": RandomSearch(25, 3),
    "slimming, filled": Slimming(fill=True),
    "evolution, filled": Evolution(40, 3, population=8, fill=True),
    "random, filled": RandomSearch(25, 3, fill=True),
}
TWO = {"parameters": 0.9, "latency on here": 0.85, "latency on phone": 0.9}


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize("limits", [None, {"parameters": 0.5}, {"macs": 0.4}, TWO], ids=str)
def test_budgets_hold_and_the_best_is_found(name, limits):
    given = problem(limits, TABLES if limits is TWO else None)
    seen = []
    found = SEARCHES[name].run(given, seen.append)
    assert given.fits(found.best.architecture)
    assert found.best.architecture in SPACE
    assert found.best.metrics == given.costs(found.best.architecture)
    assert found.best.accuracy == Formula().accuracy(found.best.architecture)
    assert tuple(seen) == found.steps
    assert [step.number for step in found.steps] == list(range(len(found.steps)))
    assert found.steps[-1].chosen == found.best
    met = found.candidates()
    assert len({one.architecture for one in met}) == len(met) == len(set(given.evaluator.asked))
    if not name.startswith("slimming") and name != "exceeding":
        assert all(given.fits(one.architecture) for one in met)
        assert found.best.accuracy == max(one.accuracy for one in met)
        assert len(given.evaluator.asked) == len(met)


def is_full(given, architecture):
    return not any(given.fits(action.architecture) for action in SPACE.growth(architecture))


@pytest.mark.parametrize("limits", [TWO, {"parameters": 0.5}], ids=str)
def test_slimming_goes_up_until_nothing_fits(limits):
    """Every step again: each is the most accurate of those that are larger and fit."""
    given = problem(limits, TABLES if limits is TWO else None)
    begun, found = Slimming().run(given), Slimming(fill=True).run(given)
    more = found.steps[len(begun.steps) :]
    assert found.steps[: len(begun.steps)] == begun.steps
    assert limits is TWO or "larger subnets that every budget has room for" in explain(more[-1])
    now = begun.best.architecture
    for step in more:
        fitting = [a for a in SPACE.growth(now) if given.fits(a.architecture)]
        assert [option.text for option in step.options] == [action.text for action in fitting]
        best = max(Formula().accuracy(action.architecture) for action in fitting)
        assert step.chosen.accuracy == best == step.options[step.taken].candidate.accuracy
        now = step.chosen.architecture
    assert found.best.architecture == now
    assert is_full(given, now)


@pytest.mark.parametrize("name", ["evolution", "random"])
@pytest.mark.parametrize("limits", [TWO, {"parameters": 0.5}], ids=str)
def test_every_subnet_is_filled_before_it_is_evaluated(name, limits):
    given = problem(limits, TABLES if limits is TWO else None)
    for how in (name, f"{name}, filled"):
        met = SEARCHES[how].run(given).candidates()
        assert all(is_full(given, one.architecture) for one in met) == ("filled" in how)
    assert len(met) <= SEARCHES[name].evaluations


@pytest.mark.parametrize("least", [0, -1, 0.01])
@pytest.mark.parametrize("limits", [None, TWO], ids=["one", "two"])
def test_slimming_takes_the_least_drop_per_gain(limits, least):
    """Every step again, from the formulas."""
    tables = TABLES if limits is TWO else {"here": TABLES["here"]}
    given = problem(limits, tables)

    def mes(subnet):
        product = (given.costs.count(subnet)[0] / 3e6) ** -0.5
        for table in tables.values():
            product *= table.predict(subnet) ** (-1 / len(tables))
        return 100 * product

    accuracy, now, steps = Formula().accuracy, SPACE.largest(), Slimming(least_drop=least).run(given).steps
    assert steps[0].chosen.architecture == now
    assert len(steps) > 3
    rises = []
    for step in steps[1:]:
        assert not given.fits(now)
        actions = SPACE.frontier(now)
        assert [option.text for option in step.options] == [action.text for action in actions]
        ratios = []
        for action, option in zip(actions, step.options, strict=True):
            drop = accuracy(now) - accuracy(action.architecture)
            gain = mes(action.architecture) - mes(now)
            assert option.drop == pytest.approx(drop, abs=1e-12)
            assert option.gain == pytest.approx(gain)
            ratios.append(max(drop, least) / gain if gain > 0 else math.inf)
            rises.append(drop < 0 < gain)
        assert ratios[step.taken] <= min(ratios) + 1e-12
        assert step.chosen == step.options[step.taken].candidate
        now = step.chosen.architecture
    assert given.fits(now)
    assert any(rises) or limits is TWO  # of one budget, there are some


class Rising(Formula):
    """Every subnet is a little more accurate than those with wider stages."""

    def accuracy(self, architecture):
        super().accuracy(architecture)
        return 0.5 - 1e-5 * sum(architecture.widths)


@pytest.mark.parametrize("least", [0, -1])
def test_an_accuracy_that_rises_by_chance_is_no_drop(least):
    """Of several the largest gain is taken; as measured, it would be the least one of rises alike."""
    step = Slimming(least_drop=least).run(problem(evaluator=Rising())).steps[1]
    rises = [option for option in step.options if option.drop < 0 < option.gain]
    assert len(rises) > 2
    taken = step.options[step.taken]
    if least == 0:
        assert taken.gain == max(option.gain for option in step.options if option.drop <= 0)
        assert taken.score == 0
        assert all(option.score == 0 for option in rises)
    else:
        assert taken.score == min(option.drop / option.gain for option in rises)
        assert "counts as" not in step.why


def test_reasons_say_what_a_drop_counts_as():
    step = Slimming(least_drop=0.02).run(problem(evaluator=Rising())).steps[1]
    drop = step.options[step.taken].drop
    assert f"it drops {drop:+.2%}, which counts as +2.00%, for a gain of" in step.why


def test_slimming_never_grows():
    given = problem({"parameters": 0.3})
    steps = Slimming().run(given).steps
    for before, after in itertools.pairwise(steps):
        for metric in ("parameters", "macs"):
            assert after.chosen.metrics[metric] < before.chosen.metrics[metric]


def test_slimming_ends_at_the_smallest_at_last():
    given = problem()
    smallest = given.costs(SPACE.smallest())
    limits = {name: smallest[name] for name in ("parameters", "macs")}
    found = Slimming().run(replace(given, budgets=Budgets(limits)))
    assert found.best.architecture == SPACE.smallest()


def test_a_space_that_fits_already_is_left():
    given = problem({"parameters": 1.0})
    found = Slimming().run(given)
    assert found.best.architecture == SPACE.largest()
    assert len(found.steps) == len(given.evaluator.asked) == 1


class Same(Formula):
    """Every subnet is as accurate."""

    def accuracy(self, architecture):
        super().accuracy(architecture)
        return 0.5


def test_of_equal_scores_the_largest_gain_is_taken():
    steps = Slimming().run(problem(evaluator=Same())).steps
    for step in steps[1:]:
        gains = [option.gain for option in step.options]
        assert all(option.score == 0 for option in step.options if option.gain > 0)
        assert step.options[step.taken].gain == max(gains) > 0
        assert "a tie" in step.why


def test_of_equal_gains_the_first_is_taken():
    # Where the score counts what no action changes, no action has a gain.
    given = problem({"parameters": 0.9}, mes=MES({"macs": 1.0}), evaluator=Same())
    given = replace(given, costs=_Flat(given.costs))
    step = Slimming().run(given).steps[1]
    assert step.taken == 0
    assert {option.score for option in step.options} == {None}
    assert "no action gains in the score of macs" in step.why


class _Flat:
    """Costs in which macs are always the same."""

    def __init__(self, costs):
        self._costs = costs

    def __getattr__(self, name):
        return getattr(self._costs, name)

    def __call__(self, architecture):
        return self._costs(architecture) | {"macs": 1.0}


def test_gain_of_what_is_exceeded_alone():
    """Where the time holds from the start, parameters alone are the gain; with both it is the whole score."""
    limits = {"parameters": 0.6, "latency": 2.0}
    step = Slimming("exceeding").run(problem(limits)).steps[1]
    expected = [
        100 * ((o.candidate.metrics["parameters"] / 3) ** -0.5 - (first / 3) ** -0.5)
        for first in [problem().costs(SPACE.largest())["parameters"]]
        for o in step.options
    ]
    assert [o.gain for o in step.options] == pytest.approx(expected)
    whole = Slimming().run(problem(limits)).steps[1]
    assert [o.gain for o in whole.options] != pytest.approx(expected)
    # A budget that is not in the score leaves the whole score.
    macs = {"macs": 0.5}
    one, other = (Slimming(gain).run(problem(macs)).steps for gain in ("exceeding", "mes"))
    assert one == other


def test_size_alone_and_speed_alone_are_other_exponents():
    """As for the paper's ablation; each is better at its own."""
    speed = Slimming().run(problem({"latency": 0.75}, mes=MES({"latency": 1.0}))).best
    size = Slimming().run(problem({"parameters": 0.5}, mes=MES({"parameters": 0.5}))).best
    assert speed.mes == pytest.approx(100 / speed.metrics["latency"])
    assert size.mes == pytest.approx(100 * (size.metrics["parameters"] / 3) ** -0.5)
    assert speed.metrics["parameters"] > size.metrics["parameters"]


@pytest.mark.parametrize("method", [Evolution, RandomSearch])
def test_a_seed_says_all(method):
    def found(seed):
        return method(30, seed).run(problem())

    assert found(1) == found(1)
    assert found(1).steps != found(2).steps


@pytest.mark.parametrize("method", [Evolution, RandomSearch])
def test_evaluations_are_as_many_as_asked_for(method):
    for count in (1, 2, 31):
        given = problem()
        method(count, 0).run(given)
        assert len(given.evaluator.asked) == len(set(given.evaluator.asked)) == count


@pytest.mark.parametrize("method", [Evolution, RandomSearch])
def test_a_space_that_is_exhausted_ends_the_search(method):
    costs = problem().costs
    sizes = sorted(costs(subnet)["parameters"] for subnet in every())
    given = problem({"parameters": sizes[30] / sizes[-1]})
    within = {subnet for subnet in every() if given.fits(subnet)}
    assert 20 < len(within) < 60
    found = method(1000, 0).run(given)
    assert set(given.evaluator.asked) <= within
    assert len(given.evaluator.asked) > 0.5 * len(within)
    assert given.fits(found.best.architecture)


def test_evolution_improves_on_its_first_population():
    steps = Evolution(90, 0, population=10).run(problem(evaluator=Formula(digits=9))).steps
    best = [step.chosen.accuracy for step in steps]
    assert best == sorted(best)
    assert best[-1] > best[0]
    texts = {option.text.split()[0] for step in steps for option in step.options}
    assert texts == {"random", "mutation", "crossover"}


def test_crossing_keeps_stages_whole():
    generator = random.Random(0)
    one, other = SPACE.largest(), SPACE.smallest()
    children = [crossed(one, other, generator) for _ in range(60)]
    assert len(set(children)) == 16
    for child in children:
        assert child in SPACE
        for i in range(4):
            assert stage(child, i) in (stage(one, i), stage(other, i))


def stage(architecture, index):
    attention = (0, 0, *architecture.late_attention())
    return (
        architecture.widths[index],
        architecture.depths[index],
        architecture.block_ratios()[index],
        attention[index],
    )


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_that_is_killed_ends_as_if_it_was_not(name, tmp_path):
    search = SEARCHES[name]
    whole = run_in(tmp_path / "whole", search, problem())
    asked = len((tmp_path / "whole" / "evaluations.jsonl").read_text().splitlines()) - 1
    lines = (tmp_path / "whole" / "steps.jsonl").read_bytes()
    for fails_at in range(0, asked, max(1, asked // 8)):
        folder = tmp_path / str(fails_at)
        with pytest.raises(RuntimeError, match="the power is cut"):
            run_in(folder, search, problem(evaluator=Formula(fails_at)))
        rest = Formula()
        assert run_in(folder, search, problem(evaluator=rest), resume=True) == whole
        assert (folder / "steps.jsonl").read_bytes() == lines
        assert len(rest.asked) == asked - fails_at, "what was known is asked again"


@pytest.mark.parametrize("file", ["steps.jsonl", "evaluations.jsonl"])
def test_a_line_that_is_half_written_is_written_again(file, tmp_path):
    search, folder = SEARCHES["evolution"], tmp_path / "one"
    whole = run_in(folder, search, problem())
    content = (folder / file).read_bytes()
    for end in (0, 1, len(content) // 3, len(content) // 2, len(content) - 1):
        (folder / file).write_bytes(content[:end])
        assert run_in(folder, search, problem(), resume=True) == whole
        assert (folder / file).read_bytes() == content


def test_steps_are_json(tmp_path):
    for name, search in SEARCHES.items():
        found = run_in(tmp_path / name, search, problem())
        first, *lines = (tmp_path / name / "steps.jsonl").read_text().splitlines()
        assert json.loads(first)["search"] == search.options()
        assert tuple(Step.from_json(json.loads(line)) for line in lines) == found.steps


def test_a_search_is_not_written_over(tmp_path):
    run_in(tmp_path, SEARCHES["random"], problem())
    with pytest.raises(SearchError, match="has a search already: go on with it"):
        run_in(tmp_path, SEARCHES["random"], problem())


class Another(Formula):
    def __init__(self):
        super().__init__()
        self.identity = "another"


@pytest.mark.parametrize(
    ("search", "changes", "message"),
    [
        (RandomSearch(25, 4), {}, 'search .*"seed": 3, .*, and now .*"seed": 4, '),
        (Slimming(), {}, '"method": "random"'),
        (RandomSearch(25, 3), {"limits": {"parameters": 0.7}}, "budgets"),
        (RandomSearch(25, 3), {"mes": MES({"latency": 1.0})}, "exponents"),
        (RandomSearch(25, 3), {"mes": MES(references={"latency": 2.0})}, "references"),
        (RandomSearch(25, 3), {"evaluator": Another()}, 'evaluator "formula 2", and now "another"'),
        (RandomSearch(25, 3), {"tables": {"here": TABLES["phone"]}}, "costs"),
    ],
    ids=["seed", "method", "budgets", "exponents", "references", "evaluator", "tables"],
)
def test_another_search_is_not_gone_on_with(search, changes, message, tmp_path):
    run_in(tmp_path, RandomSearch(25, 3), problem())
    with pytest.raises(SearchError, match=message):
        run_in(tmp_path, search, problem(**changes), resume=True)


def test_files_that_are_none(tmp_path):
    steps = tmp_path / "steps.jsonl"
    for content in ("no json\n", "1\n", "notes", "[" * 99_999 + "\n"):
        steps.write_text(content)
        with pytest.raises(SearchError, match="is no record"):
            run_in(tmp_path, SEARCHES["random"], problem(), resume=True)
    steps.unlink()
    run_in(tmp_path, SEARCHES["random"], problem())
    lines = steps.read_text().splitlines(keepends=True)
    steps.write_text("".join([lines[0], lines[2], lines[1], *lines[3:]]))
    with pytest.raises(SearchError, match="step 0 is not what"):
        run_in(tmp_path, SEARCHES["random"], problem(), resume=True)
    with pytest.raises(SearchError, match="cannot be made"):
        run_in(steps / "under", SEARCHES["random"], problem())


def test_searches_share_accuracies(tmp_path):
    shared = tmp_path / "accuracies.jsonl"
    run_in(tmp_path / "one", Slimming(), problem(), evaluations=shared)
    again = Formula()
    run_in(tmp_path / "two", Slimming("exceeding"), problem(evaluator=again), evaluations=shared)
    alone = Formula()
    run_in(tmp_path / "three", Slimming("exceeding"), problem(evaluator=alone))
    assert len(again.asked) < len(alone.asked)
    with pytest.raises(SearchError, match="evaluator"):
        run_in(tmp_path / "four", Slimming(), problem(evaluator=Another()), evaluations=shared)


@pytest.mark.parametrize("name", SEARCHES)
def test_no_budget_below_the_smallest(name):
    given = problem({"parameters": 1e-6})
    with pytest.raises(SearchError, match="the smallest has"):
        SEARCHES[name].run(given)
    assert not given.evaluator.asked


def test_explanations_name_every_option_and_the_reason():
    steps = Slimming().run(problem()).steps
    assert "begins with the largest" in explain(steps[0])
    for step in steps[1:]:
        text = explain(step)
        lines = text.splitlines()
        assert lines[0] == f"step {step.number}"
        for option in step.options:
            (line,) = [line for line in lines[3:-1] if f" {option.text} " in line]
            assert line.startswith(">") == (option is step.options[step.taken])
            assert f"{option.candidate.accuracy:.2%}" in line
            assert f"{option.drop:+.2%}" in line
        assert step.options[step.taken].text in lines[-1]
        assert "the least of" in lines[-1]
    assert "Every budget holds" in explain(steps[-1])
    assert "Still beyond a budget: " in explain(steps[1])
    assert "the best so far" in explain(RandomSearch(5, 0).run(problem()).steps[0])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Slimming("speed"), UnknownNameError, "unknown gain 'speed'"),
        (lambda: Slimming(least_drop=2), SearchError, r"must be in -1 ... 1; got 2"),
        (lambda: Slimming(least_drop=math.nan), SearchError, r"must be in -1 ... 1; got nan"),
        (lambda: RandomSearch(0), SearchError, "at least 1 evaluation; got 0"),
        (lambda: Evolution(0), SearchError, "must be at least 1"),
        (lambda: Evolution(parents=0), SearchError, "a share above 0"),
        (lambda: Evolution(population=0), SearchError, "must be at least 1"),
    ],
)
def test_options_that_make_no_sense(make, error, message):
    with pytest.raises(error, match=message):
        make()
