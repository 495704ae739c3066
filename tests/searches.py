"""What searches need in tests: a small space, tables of made-up times, and accuracies that are a formula."""

import math
import random
from functools import cache

from effv2_kernels.search.budgets import Budgets
from effv2_kernels.search.cost import Costs
from effv2_kernels.search.latency import BlockTime, Device, LatencyTable, Task, block_names
from effv2_kernels.search.mes import MES
from effv2_kernels.search.search import Problem
from effv2_kernels.search.space import SearchSpace, StageChoices

CLASSES = 7
SPACE = SearchSpace(
    (
        StageChoices((8, 16), (1,), (1, 2)),
        StageChoices((8, 16), (1, 2), (2,)),
        StageChoices((16, 24), (1, 2), (1, 2), (0, 1)),
        StageChoices((16, 24, 32), (1, 2), (2,), (0, 1)),
    ),
    img_size=(32, 48),
    in_channels=2,
)
HERE = Device("a processor", "avx2", "fp32", 1, 1, {"effv2_kernels": "0", "torch": "0"})


@cache
def every(space=SPACE):
    """All subnets, by all ways down from the largest."""
    met, left = {}, [space.largest()]
    while left:
        one = left.pop()
        if one not in met:
            met[one] = None
            left += [action.architecture for action in space.neighbours(one)]
    return list(met)


def table(seed=0, space=SPACE, classes=CLASSES, device=HERE):
    """Times of all blocks, in which a smaller block may well be a slower one."""
    names = {name for subnet in every(space) for name in block_names(subnet, Task.of(space, classes))}
    times = {n: BlockTime(random.Random(f"{seed} {n}").uniform(0.1, 1), 0.01, 4) for n in sorted(names)}
    return LatencyTable(device, Task.of(space, classes), times, call=0.05, step=0.01)


TABLES = {"here": table(0), "phone": table(1)}


class Formula:
    """Accuracies that grow with the network but for noise, so coarse that many are equal.

    fails_at: raise at the question of this number, counted from 0.
    """

    def __init__(self, fails_at=None, digits=2):
        self.identity = f"formula {digits}"
        self.asked = []
        self.fails_at, self.digits = fails_at, digits

    def accuracy(self, architecture):
        if len(self.asked) == self.fails_at:
            raise RuntimeError("the power is cut")
        self.asked.append(architecture)
        size = sum(architecture.widths) / 60 + sum(map(sum, architecture.block_ratios())) / 10
        size += 0.3 * sum(architecture.late_attention())
        noise = random.Random(architecture.to_json()).uniform(-0.02, 0.02)
        return round(1 - math.exp(-size / 2) + noise, self.digits)


def problem(limits=None, tables=None, *, evaluator=None, mes=None):
    """limits: shares of what the largest subnet has; by default 0.8 of its parameters and of its time."""
    tables = {"here": TABLES["here"]} if tables is None else tables
    costs = Costs(SPACE, classes=CLASSES, tables=tables)
    largest = costs(SPACE.largest())
    shares = {"parameters": 0.8, "latency": 0.8} if limits is None else limits
    budgets = Budgets({name: share * largest[name] for name, share in shares.items()})
    return Problem(costs, budgets, mes or MES(), evaluator or Formula())
