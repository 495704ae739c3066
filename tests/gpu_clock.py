"""Events of a GPU on a clock that tests move."""

import torch


class GpuClock:
    """now: milliseconds, which every ``torch.cuda.Event`` reads when it is recorded."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        gpu = self

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                self.at = gpu.now

            def synchronize(self):
                assert self.at <= gpu.now

            def elapsed_time(self, end):
                return end.at - self.at

        monkeypatch.setattr(torch.cuda, "Event", Event)

    def tick(self, monkeypatch):
        """From now on each turn of bench/gpu takes 1 ms."""
        from bench.gpu import timing

        gpu = self

        class Ticking(torch.cuda.Event):
            def record(self):
                gpu.now += 1.0
                super().record()

        monkeypatch.setattr(torch.cuda, "Event", Ticking)
        monkeypatch.setattr(timing, "TURN", 1e-3)
