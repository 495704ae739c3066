"""A device of made-up times, which drifts, and tables that are measured on it."""

import random

from effv2_kernels.search.latency import Device, Task, block_names, measuring
from effv2_kernels.search.space import SearchSpace

SPACE = SearchSpace.read("fashion")
CLASSES = 10
TASK = Task.of(SPACE, CLASSES)
DEVICE = Device("a machine", "none", "fp32", 1, 1, {"effv2_kernels": "0"})
CALL, STEP = 0.3, 0.01


def cost(name):
    """Of a block: anything that is the same for the same name."""
    return random.Random(name).uniform(0.5, 3.0)


def true_time(architecture):
    names = block_names(architecture, TASK)
    return CALL + sum(cost(name) + STEP for name in names)


def measure(*args, **options):
    return measuring.measure(*args, **options).table


class Machine:
    """Stands for a device that drifts by a factor of two while it is asked, and adds noise of some size."""

    device, task = DEVICE, TASK

    def __init__(self, noise=0.0, seed=0):
        self.random, self.noise, self.reads = random.Random(seed), noise, 0
        self.slow = 1.0

    def runner(self, architecture):
        return Runner(self, architecture)

    def room(self):
        return 1.0

    def off(self):
        self.reads += 1
        return self.slow * self.random.lognormvariate(0.0, self.noise)


class Runner:
    def __init__(self, machine, architecture):
        self.machine, self.architecture = machine, architecture

    def whole(self):
        return true_time(self.architecture) * self.machine.off()

    def blocks(self):
        names = block_names(self.architecture, TASK)
        time = tuple(cost(name) * self.machine.off() for name in names)
        self.machine.slow = self.machine.random.uniform(1.0, 2.0) if self.machine.noise else 1.0
        return time
