"""Steps of a GPU benchmark on a clock of their own, which remember their order."""

import torch
from gpu_results import ENVIRONMENT

from bench.gpu import parity, scaling, speed, worker
from bench.gpu.parity import Check, Group, Parity
from bench.gpu.results import Results, read

CPU = torch.device("cpu")
RIGHT = Parity("a block", "fp16", 1, (7, 7), 5e-3, 1e-4)


class Fakes:
    """Steps that take time on a clock of their own, and remember their order."""

    def __init__(self, monkeypatch, folder):
        self.now, self.done, self.folder = 0.0, [], folder
        self.takes = {"parity": 10.0, "untuned": 1.0, "tune": 20.0, "plain": 5.0, "rival": 100.0, "cpu": 2.0}
        self.fails, self.rows = {}, [RIGHT]
        monkeypatch.setattr(worker.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(parity, "groups", lambda variants, device: self.groups())
        monkeypatch.setattr(worker, "_FIRST_GROUPS", 1)
        monkeypatch.setattr(speed, "untuned", self.untuned)
        monkeypatch.setattr(speed, "tune", self.tune)
        monkeypatch.setattr(scaling, "figures", lambda: {"s0 1 2": ("s0", 1, 2)})
        monkeypatch.setattr(scaling, "measure", self.scale)
        monkeypatch.setattr(speed, "measure", self.measure)
        monkeypatch.setattr(worker.Work, "ceilings", lambda work, known: None)
        monkeypatch.setattr(torch.compiler, "reset", lambda: None)
        monkeypatch.setattr(worker.gc, "collect", lambda: None)  # a second each, late in a session

    def take(self, what, key):
        self.done.append(f"{what} {key}")
        self.now += self.takes[what]
        if f"{what} {key}" in self.fails:
            raise self.fails[f"{what} {key}"]

    def groups(self):
        def check(key):
            self.take("parity", key)
            yield from self.rows

        return [
            Group(name, [Check(f"{name}{i}", lambda key=f"{name}{i}": check(key)) for i in (1, 2)])
            for name in "ab"
        ]

    def tune(self, variant, batch, device, go_on):
        self.take("tune", f"{variant} {batch}")
        return {f"a launch of {variant} {batch}": {"BM=16": 0.1}} if go_on() else None

    def untuned(self, variant, batch, device, *, seconds):
        self.take("untuned", f"{variant} {batch}")
        return 1.5

    def scale(self, variant, batch, threads, *, seconds):
        self.take("cpu", f"{variant} {batch} {threads}")
        return {"ms": {"effv2": 4.0, "eager": 20.0}}

    def measure(self, variant, batch, device, ceilings, *, seconds, rival, ready, turns):
        self.take("rival" if rival else "plain", f"{variant} {batch}")
        if rival:
            ready(90.0)
        ms = {"effv2": 1.0, "eager": 9.0, **({"compile": 2.0} if rival else {})}
        return {"ms": ms, "refused": {}, "warnings": []}

    def run(self, **changes):
        """The steps of one more call with the same folder, and what is on disk after it."""
        self.done = []
        options = {"variants": ("s0", "l"), "batches": (1, 32), "seconds": 1e4}
        options |= {"shared": str(self.folder)} | changes
        results = Results(self.folder, ENVIRONMENT)
        worker.Work(worker.Wanted(str(self.folder), **options), results, CPU).run()
        return self.done, read(results.path)
