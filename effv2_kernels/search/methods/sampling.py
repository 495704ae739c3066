"""Random subnets within the budgets."""

from __future__ import annotations

import random
from collections.abc import Callable, Container

from effv2_kernels.families.efficientformer_v2.architecture import Architecture
from effv2_kernels.search.search import Problem
from effv2_kernels.search.space.space import Action
from effv2_kernels.search.step import Candidate

# Draws until something new: where none is, the space within the budgets is as good as exhausted.
_TRIES = 100


def fitted(
    problem: Problem, architecture: Architecture, generator: random.Random, *, fill: bool
) -> Architecture:
    """A subnet made smaller by random steps until every budget holds; fill: and larger as far as they do.

    To draw until one fits would never end under tight budgets, and this also draws near them, where the
    accurate ones are.
    """
    while not problem.fits(architecture):
        architecture = generator.choice(problem.space.frontier(architecture)).architecture
    return filled(problem, architecture, generator) if fill else architecture


def room(problem: Problem, architecture: Architecture) -> list[Action]:
    """The steps larger that every budget has room for."""
    return [a for a in problem.space.growth(architecture) if problem.fits(a.architecture)]


def filled(problem: Problem, architecture: Architecture, generator: random.Random) -> Architecture:
    """A subnet within the budgets made larger by random steps until none fits."""
    while actions := room(problem, architecture):
        architecture = generator.choice(actions).architecture
    return architecture


def new(draw: Callable[[], Architecture], known: Container[Architecture]) -> Architecture | None:
    """The first that was not known; None where drawing again and again brings nothing new."""
    for _ in range(_TRIES):
        drawn = draw()
        if drawn not in known:
            return drawn
    return None


def rank(candidate: Candidate) -> tuple[float, float, str]:
    """The least is the best: the most accurate, then the best score; the rest makes ties deterministic."""
    return -candidate.accuracy, -candidate.mes, candidate.architecture.to_json()
