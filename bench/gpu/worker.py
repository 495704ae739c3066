"""The process that uses the GPU, started by run_all.py: one step after the other, each recorded at once.

A kernel that fails badly takes its whole process along: after some errors CUDA answers nothing any more. Then
this process ends with RESTART, and the next one goes on behind the step that failed.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import tarfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.gpu import prepared
from bench.gpu.parent import end_with_parent
from bench.gpu.results import Results, environment, has_rival
from bench.gpu.targets import BATCHES, VARIANTS, speed_key
from bench.gpu.turns import Turns

DONE, UNAVAILABLE, RESTART = 0, 2, 75

_T = TypeVar("_T")

# Seconds without which a step is not begun, and one with torch.compile.
_LEAST = 5.0
_LEAST_WITH_RIVAL = 60.0
# Groups of parity checks that come before any figure.
_FIRST_GROUPS = 1
# Seconds of timing for one figure, for one before its tiles are measured, and for one of the CPU.
_TIMING = 1.0
_GLANCE = 0.4
_CPU_TIMING = 1.0


@dataclass(frozen=True)
class Wanted:
    """What to do. seconds: for everything, of them so many for parity and for tuning ahead of all figures.

    compile: beside torch.compile. shared: of a process that measures that beside others of its kind, the
    folder in which they take turns and find tiles; without it, such pairs are only named. own: so is the CPU.
    prepared: the folder of prepare.py. cuda_seconds: for the CUDA kernels in it, ahead of all else.
    sanitizer: a tool of compute-sanitizer.
    """

    out: str
    variants: tuple[str, ...] = VARIANTS
    batches: tuple[int, ...] = BATCHES
    seconds: float = 350.0
    parity_seconds: float = 180.0
    tune_seconds: float = 100.0
    compile: bool = True
    cpu: bool = True
    prepared: str | None = None
    commit: str | None = None
    shared: str | None = None
    own: bool = False
    cuda_seconds: float = 200.0
    sanitizer: str | None = None
    ends: float | None = None  # by time.monotonic of the machine, if before the seconds are over

    @property
    def cuda(self) -> Path | None:
        """The folder with the CUDA kernels, where these are measured."""
        return None if self.prepared is None or self.cuda_seconds <= 0 else Path(self.prepared)

    @property
    def pairs(self) -> dict[str, tuple[str, int]]:
        """(variant, batch) by the key of their figure, the most important batch first."""
        return {
            speed_key(variant, batch): (variant, batch) for batch in self.batches for variant in self.variants
        }


@dataclass(frozen=True)
class Clock:
    """The time that is left."""

    seconds: float
    _start: float = field(default_factory=lambda: time.monotonic())

    @property
    def left(self) -> float:
        return self.seconds - (time.monotonic() - self._start)

    def part(self, seconds: float) -> Clock:
        """A clock for at most ``seconds`` from now."""
        return Clock(min(seconds, self.left))


class GpuLost(Exception):
    """The GPU answers nothing more in this process."""


class Work:
    """All steps on one device."""

    def __init__(self, wanted: Wanted, results: Results, device: Any) -> None:
        self.wanted, self.results, self.device = wanted, results, device
        self.clock = Clock(wanted.seconds)
        if wanted.ends is not None:
            self.clock = self.clock.part(wanted.ends - time.monotonic())
        self.pairs = wanted.pairs
        self.turns = Turns(None if wanted.shared is None else Path(wanted.shared))
        self._ceilings: Any = None

    def run(self) -> None:
        """What there is time for, the important first: see the module ``run_all``."""
        from bench.gpu import parity

        groups = parity.groups(self.wanted.variants, self.device) if self.wanted.parity_seconds > 0 else []
        cuda = self._cuda_steps()
        rivals = list(dict.fromkeys([*self.first_pairs(), *self.pairs])) if self.wanted.compile else []
        self.results.data["wanted"] = {
            "parity": [check.key for group in groups for check in group.checks],
            "speed": list(self.pairs),
            "compile": rivals,
            "tuned": list(self.pairs) if self.wanted.tune_seconds > 0 else [],
            "cpu": list(self._cpu_figures()),
            **(cuda.wanted() if cuda is not None else {}),
        }
        self.results.save()
        if cuda is not None:
            cuda.run(self.clock.part(self.wanted.cuda_seconds))
        spent = self._seconds(self.check, groups[:_FIRST_GROUPS], self.clock.part(self.wanted.parity_seconds))
        tuning = 0.0
        for key in self.first_pairs():
            tuning += self._seconds(self.tune, key, self.clock.part(self.wanted.tune_seconds - tuning))
            self.measure(key, rival=False)
        self.check(groups[_FIRST_GROUPS:], self.clock.part(self.wanted.parity_seconds - spent))
        clock = self.clock.part(self.wanted.tune_seconds - tuning)
        for key in self.pairs:
            self.tune(key, clock)
        for key in self.pairs:
            self.measure(key, rival=False)
        for key in rivals if self.wanted.shared is not None else ():
            self.measure(key, rival=True)
        for key, figure in self._cpu_figures().items() if not self.wanted.own else ():
            self.scale(key, figure)
        for key in self.pairs:
            self.measure(key, rival=False)
        if cuda is not None:
            cuda.run(self.clock)

    def _cuda_steps(self) -> Any:
        """None where nothing is asked of CUDA, or of other processes."""
        if self.wanted.cuda is None or self.wanted.shared is not None:
            return None
        from bench.gpu.cuda_steps import CudaSteps

        return CudaSteps(self, self.wanted.cuda, self.wanted.sanitizer)

    def say(self, line: str) -> None:
        _say(line)

    def first_pairs(self) -> list[str]:
        """The most important pairs: one model with the most important batch and with the largest."""
        same = [key for key in self.pairs if self.pairs[key][0] == self.wanted.variants[0]]
        return list(dict.fromkeys([*same[:1], *sorted(same, key=lambda key: -self.pairs[key][1])[:1]]))

    def _cpu_figures(self) -> dict[str, tuple[str, int, int]]:
        from bench.gpu import scaling

        return scaling.figures() if self.wanted.cpu else {}

    def check(self, groups: list[Any], clock: Clock) -> None:
        """Parity, as far as it is not known."""
        known = self.results.data["parity"]
        for group in groups:
            left = [check for check in group.checks if check.key not in known]
            if not left or clock.left < _LEAST:
                continue
            start = time.monotonic()
            group.prepare(self.device)
            done = 0
            for check in left:
                if clock.left <= 0:
                    break
                self.attempt("parity", check.key, partial(_rows, check))
                for row in known[check.key]:
                    if not row["ok"]:
                        _say(f"WRONG {check.key}: {row['what']}: {row['failure']}")
                if not all(row["ok"] for row in known[check.key]):
                    self.still_there()
                done += 1
            _say(f"{group.what}: {done} checked in {time.monotonic() - start:.0f} s, {len(left) - done} left")
            self.free()

    def untuned(self, key: str) -> None:
        """What one pair takes before its tiles are measured, where that is not known."""
        if key in self.results.data["untuned"]:
            return
        from bench.gpu import speed

        with self.turns.gpu():
            self.attempt(
                "untuned", key, lambda: speed.untuned(*self.pairs[key], self.device, seconds=_GLANCE)
            )
        self.free()

    def scale(self, key: str, figure: tuple[str, int, int]) -> None:
        """One figure of the CPU engine where it is not known."""
        if key in self.results.data["cpu"] or self.clock.left < _LEAST:
            return
        from bench.gpu import scaling

        found = self.attempt("cpu", key, lambda: scaling.measure(*figure, seconds=_CPU_TIMING))
        if found is not None:
            times = ", ".join(f"{name} {ms:.2f} ms" for name, ms in found["ms"].items())
            _say(f"CPU, {key}: {times}")

    def tune(self, key: str, clock: Clock) -> None:
        """Measure the tiles of one pair where that was asked for and is not done."""
        if self.wanted.tune_seconds <= 0 or key in self.results.data["tuned"] or clock.left < _LEAST:
            return
        from bench.gpu import speed

        self.untuned(key)
        start = time.monotonic()

        def step() -> float | None:
            with self.turns.gpu():
                times = speed.tune(*self.pairs[key], self.device, lambda: clock.left > 0)
            if times is None:
                return None
            self.results.data["tile_ms"] |= times
            return round(time.monotonic() - start, 1)

        whole = self.attempt("tuned", key, step) is not None
        _say(f"{key}: {'tuned' if whole else 'tuning ended'} after {time.monotonic() - start:.0f} s")
        self.free()

    def measure(self, key: str, *, rival: bool) -> None:
        """One figure where it is not known. rival: with torch.compile."""
        from bench.gpu import speed

        row = self.results.data["speed"].get(key, {})
        with_rival = has_rival(row)
        if "failure" in row or (rival and with_rival):
            return
        if rival:
            least = max(_LEAST_WITH_RIVAL, *self.results.data["compile_seconds"].values(), 0.0)
            # Such a figure costs too much to be taken twice.
            self.tune(key, self.clock.part(self.clock.left - least))
            tunes = self.wanted.tune_seconds > 0 and key not in self.results.data["tuned"]
            if tunes or self.clock.left < least:
                return
        tuned = isinstance(self.results.data["tuned"].get(key), float)
        if not rival and "ms" in row and (with_rival or row["tuned"] == tuned):
            return
        if self.clock.left < _LEAST:
            return

        def ready(seconds: float) -> None:
            self.results.data["compile_seconds"][key] = round(seconds, 1)
            self.results.save()

        def step() -> dict[str, Any]:
            found = speed.measure(
                *self.pairs[key],
                self.device,
                self.ceilings(row.get("achieved", {}).get("ceilings")),
                seconds=_TIMING,
                rival=rival,
                ready=ready,
                turns=self.turns,
            )
            refused = {} if rival else row.get("refused", {})  # it is not tried again
            return found | {"tuned": tuned, "refused": refused | found["refused"]}

        found = self.attempt("compile" if rival else "speed", key, step)
        if found is not None:
            _say(f"{key}: " + ", ".join(f"{name} {ms:.3f} ms" for name, ms in found["ms"].items()))
            notes = [*found["warnings"], *found["refused"].values(), found.get("failure", "")]
            for note in filter(None, notes):
                _say(f"{key}: {note.splitlines()[0]}")
        if rival:
            import torch

            with suppress(Exception):  # where torch.compile is broken, the figure says so
                torch.compiler.reset()
        self.free()

    def _seconds(self, take: Callable[..., None], *arguments: Any) -> float:
        before = self.clock.left
        take(*arguments)
        return before - self.clock.left

    def ceilings(self, known: dict[str, float] | None = None) -> Any:
        """Of this GPU: measured once in this process, or before it where it measures one pair alone."""
        if self._ceilings is None:
            import torch

            from effv2_kernels.gpu.ceilings import Ceilings, measure_ceilings

            if known is not None and self.wanted.shared is not None:
                return Ceilings(**known)
            with self.turns.gpu():
                self._ceilings = measure_ceilings(self.device, torch.float16)
            self.free()
        return self._ceilings

    def still_there(self) -> None:
        """Raises GpuLost where the GPU does not answer any more."""
        import torch

        try:
            float(torch.ones(1, device=self.device).sum())
        except RuntimeError as error:
            raise GpuLost from error

    def attempt(self, step: str, key: str, take: Callable[[], _T | None]) -> _T | None:
        """Take one step and record what it finds, or why it failed; None where it finds nothing."""
        self.results.begin(step, key)
        try:
            found = take()
            if found is None:
                self.results.end()
            else:
                self.results.add(step, key, found)
        except Exception as error:
            failure = f"{type(error).__name__}: {error}"[:2000]
            _say(f"{key}: {failure.splitlines()[0]}")
            self.results.fail(step, key, failure)
            self.still_there()
            return None
        return found

    def free(self) -> None:
        """Give back memory that nothing holds any more."""
        import torch

        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def _rows(check: Any) -> list[dict[str, Any]]:
    return [row.row() for row in check.run()]


def why_not() -> str:
    """Why nothing can be measured here, "" where it can."""
    try:
        import torch
    except ImportError as error:
        return f"PyTorch cannot be imported ({error}); install it, see pytorch.org"
    from effv2_kernels.backends import can_run, interpreted

    if interpreted():
        return "TRITON_INTERPRET=1 runs the kernels on the CPU; unset it"
    answer = can_run("triton", dtype="fp16", device=torch.device("cuda", 0))
    if not answer.ok:
        return answer.why
    try:
        from triton.runtime import driver

        driver.active.get_current_target()  # the first that needs the C compiler
    except Exception as error:
        return f"Triton cannot start ({type(error).__name__}: {error})"
    return ""


def main(arguments: list[str]) -> int:
    wanted = Wanted(**json.loads(arguments[0]))
    if wanted.prepared is not None:
        try:
            prepared.load(Path(wanted.prepared), prepared.NATIVE)
        except prepared.Unusable as error:
            _say(f"the CPU engine is not the prepared one: {error}")
    reason = why_not()
    if reason:
        print(f"nothing can be measured: {reason}.", file=sys.stderr)
        return UNAVAILABLE
    import torch
    import triton

    import effv2_kernels
    from effv2_kernels.triton.identity import code_of

    # Tiles that were measured stay with the figures and the code that they were measured with; the user's own
    # are neither used nor changed.
    code = code_of(Path(effv2_kernels.__file__).parent)[:12]
    if wanted.cuda is not None:
        code += f"-{prepared.digest(wanted.cuda)[:8]}"
    folder = Path(wanted.out if wanted.shared is None else wanted.shared).resolve()
    os.environ["EFFV2_CACHE_DIR"] = str(folder / "tiles" / code)
    # torch.compile's processes would use the assembler of PyTorch and this one that of Triton: what they have
    # compiled would be compiled again here, one kernel after the other.
    os.environ.setdefault("TRITON_PTXAS_PATH", triton.knobs.nvidia.ptxas.path)
    # What torch.compile has compiled and measured when the time is over is there for the next call.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder / "inductor"))

    if wanted.prepared is not None and wanted.shared is None:
        from bench.gpu import kernels

        path = Path(wanted.prepared, prepared.KERNELS)
        try:
            _say(kernels.bring_back(path))
        except (OSError, tarfile.TarError, ValueError, KeyError) as error:
            _say(f"the kernels in {path} cannot be used ({type(error).__name__}: {error})")
    device = torch.device("cuda", 0)
    results = Results(Path(wanted.out), environment(device, wanted.commit, wanted.cuda))
    try:
        Work(wanted, results, device).run()
    except GpuLost:
        _leave(RESTART)
    _leave(DONE)
    return DONE


def _leave(code: int) -> None:
    """End at once: what frees memory on a GPU that is lost can end the process with another code."""
    sys.stdout.flush()
    os._exit(code)


def _say(line: str) -> None:
    print(line, flush=True)


def _stop(*_: object) -> None:
    sys.exit("stopped")


def live() -> int:
    """``main`` in a process that ends with the one that started it, in order when told to."""
    signal.signal(signal.SIGTERM, _stop)
    if os.getpgrp() == os.getpid():
        end_with_parent()
    return main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(live())
