"""What is asked of the CUDA kernels on a GPU, in order of worth: steps of ``worker.Work``.

The wrappers first, on which every kernel is built: where one is wrong, nothing else of CUDA is run, and what
is left out is named by ``report``. Then parity and the speed of the first model, the rest of parity, all
figures before tuning and after, the sanitizer where it was asked for, and the ways of each bottleneck.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.gpu import prepared, sanitizer, wrappers

if TYPE_CHECKING:
    from bench.gpu.worker import Clock, Work

# The key of the one figure of the wrappers.
WRAPPERS = "all"
_LEAST = 5.0
_TIMING = 1.0
_GLANCE = 0.4


class CudaSteps:
    """folder: that of prepare.py. tool: of compute-sanitizer, or None."""

    def __init__(self, work: Work, folder: Path, tool: str | None) -> None:
        from bench.gpu import cuda_parity

        self._work, self._folder, self._tool = work, folder, tool
        self._results, self._say = work.results, work.say
        self._groups: list[Any] = []
        if work.wanted.parity_seconds > 0:
            self._groups = cuda_parity.groups(work.wanted.variants, work.device)

    def wanted(self) -> dict[str, list[str]]:
        """The keys of all steps, by section."""
        pairs = list(self._work.pairs)
        return {
            "wrappers": [WRAPPERS],
            "cuda_parity": [check.key for group in self._groups for check in group.checks],
            "cuda": pairs,
            "cuda_tuned": pairs if self._work.wanted.tune_seconds > 0 else [],
            "sanitizer": [] if self._tool is None else [self._tool],
            "ffn": pairs,
        }

    def run(self, clock: Clock) -> None:
        """What there is time for."""
        if not self._usable(clock):
            return
        first = self._work.first_pairs()
        self._work.check(self._groups[:1], clock)
        for key in first:
            self._untuned(key, clock)
        # Or a first call would end without figures of the others.
        self._work.check(self._groups[1:], clock.part(clock.left / 2))
        for key in self._work.pairs:
            self._untuned(key, clock)
        for key in dict.fromkeys([*first, *self._work.pairs]):
            self._tune(key, clock)
            self._measure(key, clock)
        self._sanitize(clock)
        for key in dict.fromkeys([*first, *self._work.pairs]):
            self._ways(key, clock)

    def _usable(self, clock: Clock) -> bool:
        """Whether the module and the wrappers are right, which is asked once."""
        known = self._results.data["wrappers"]
        if WRAPPERS not in known and clock.left < _LEAST:
            return False
        if WRAPPERS not in known:
            self._work.attempt("wrappers", WRAPPERS, lambda: wrappers.run(self._folder / prepared.WRAPPERS))
        found = known[WRAPPERS]
        if not found.get("failure"):
            try:
                prepared.load(self._folder, prepared.CUDA)
            except prepared.Unusable as error:
                self._results.fail("wrappers", WRAPPERS, str(error))
                found = known[WRAPPERS]
        if found.get("failure"):
            self._say(f"the CUDA kernels are left out: {found['failure'].splitlines()[0]}")
        return not found.get("failure")

    def _untuned(self, key: str, clock: Clock) -> None:
        from bench.gpu import cuda_speed

        take = partial(cuda_speed.untuned, *self._work.pairs[key], self._work.device, seconds=_GLANCE)
        found = self._once("cuda_untuned", key, clock, take)
        if found is not None:
            self._say(f"{key}, untuned: " + ", ".join(f"{name} {ms:.3f} ms" for name, ms in found.items()))

    def _tune(self, key: str, clock: Clock) -> None:
        if self._work.wanted.tune_seconds <= 0:
            return
        from bench.gpu import cuda_speed

        before = clock.left

        def take() -> float | None:
            times = cuda_speed.tune(*self._work.pairs[key], self._work.device, lambda: clock.left > 0)
            if times is None:
                return None
            self._results.data["tile_ms"] |= times
            return round(before - clock.left, 1)

        self._untuned(key, clock)
        self._once("cuda_tuned", key, clock, take)

    def _measure(self, key: str, clock: Clock) -> None:
        """Again where tiles were measured since."""
        from bench.gpu import cuda_speed

        states = {
            name: isinstance(self._results.data[section].get(key), float)
            for name, section in (("tuned", "cuda_tuned"), ("triton_tuned", "tuned"))
        }
        row = self._results.data["cuda"].get(key)
        if row is not None and ("failure" in row or states.items() <= row.items()):
            return
        if clock.left < _LEAST:
            return
        found = self._work.attempt(
            "cuda",
            key,
            partial(cuda_speed.measure, *self._work.pairs[key], self._work.device, seconds=_TIMING, **states),
        )
        if found is not None:
            self._say(f"{key}: " + ", ".join(f"{name} {ms:.3f} ms" for name, ms in found["ms"].items()))
            for note in filter(None, [*found["refused"].values(), found.get("failure", "")]):
                self._say(f"{key}: {note.splitlines()[0]}")
        self._work.free()

    def _sanitize(self, clock: Clock) -> None:
        if self._tool is None or self._tool in self._results.data["sanitizer"]:
            return
        program = sanitizer.find()
        if program is None:
            self._say(f"{self._tool} is left out: there is no compute-sanitizer on PATH")
            return
        if clock.left < sanitizer.SECONDS:  # an answer that is cut off is none
            return
        self._work.free()
        take = partial(sanitizer.run, program, self._tool, self._folder)
        found = self._once("sanitizer", self._tool, clock, take)
        if found is not None:
            self._say(f"{self._tool}: {found.get('failure') or found.get('late') or 'nothing found'}")

    def _ways(self, key: str, clock: Clock) -> None:
        from bench.gpu import cuda_speed

        take = partial(cuda_speed.ffn_ways, *self._work.pairs[key], self._work.device)
        self._once("ffn", key, clock, take)

    def _once(self, step: str, key: str, clock: Clock, take: Callable[[], Any]) -> Any:
        if key in self._results.data[step] or clock.left < _LEAST:
            return None
        found = self._work.attempt(step, key, take)
        self._work.free()
        return found
