"""Everything that only a GPU can prove, in one command: parity, then speed.

    python bench/gpu/run_all.py --out build/gpu

Needs Python, PyTorch 2.10 or newer with its Triton, a C compiler (which Triton needs), and a source checkout;
no installation, no network, and the compiled CPU module for the CPU's figures alone. Takes at most --seconds,
6 minutes by default, and prints a short table last.

The most important comes first: parity of the first model in fp16, its speed at one image and the largest
batch, the rest of parity, all figures before and after tuning; then the same beside
torch.compile(mode="max-autotune"), which takes minutes for each model and batch, most of them on the CPU:
--beside of these run at once and take turns on the GPU; and the CPU engine on one to all cores.
With --prepared, the folder that ``prepare.py`` filled elsewhere, Triton's kernels need not be compiled, nor
the CPU engine be built, and the CUDA kernels come before all of this: their wrappers, their parity, and their
speed beside Triton's (cuda_steps.py has the order); nothing else of them is run where a wrapper is wrong.
--sanitizer runs small launches of theirs under NVIDIA's compute-sanitizer as well, where there is one.

OUT/gpu.json is written after every step, and a further call with the same --out goes on where this one ended;
what is not done yet is named. Tiles that were measured are in OUT/tiles, what torch.compile has compiled and
measured in OUT/inductor. A result worth keeping is copied to bench/results/<gpu>.json, its tiles to
effv2_kernels/triton/tuned/<gpu>.json, and ``chart.py`` puts it into the README.

Exit code: 0 what was measured is right (targets may be missed, and steps left), 1 something is wrong,
2 nothing can be measured here or the options are bad.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.gpu import prepared, sanitizer
from bench.gpu.report import report, wrong
from bench.gpu.results import blame, forget, git, hand_over, has_rival, read, steps_done, take_over, write
from bench.gpu.targets import BATCHES, MODELS, VARIANTS, batches, models
from bench.gpu.worker import DONE, RESTART, UNAVAILABLE, Wanted

WORKER = Path(__file__).with_name("worker.py")

# Seconds that a worker gets to keep what it has, and those that a new one needs to begin.
_GRACE = 5.0
_START = 10.0

# Seconds after which a step hangs, and what is between steps: compiling kernels, above all.
_LIMITS = {"parity": 90.0, "speed": 90.0, "untuned": 90.0, "tuned": 240.0, "compile": 900.0, "cpu": 90.0}
_LIMITS |= {"wrappers": 90.0, "cuda_untuned": 90.0, "cuda_tuned": 240.0, "cuda": 90.0, "ffn": 240.0}
_LIMITS |= {"sanitizer": sanitizer.SECONDS + 30.0}
_BETWEEN = 240.0
_GLANCE = 1.0  # how often to look

# Processors that one process with torch.compile has work for.
_CPUS = 3


class Hangs(Exception):
    """A worker is at one step, or between two of them, for longer than that can take."""


def measure(wanted: Wanted, beside: int) -> int:
    """All that is wanted, as far as its time allows; the exit code of ``supervise``."""
    end = time.monotonic() + wanted.seconds
    code = supervise(replace(wanted, own=True))
    if code == DONE and wanted.compile:
        _measure_rivals(wanted, beside, end)
    if code == DONE and wanted.cpu:
        code = supervise(replace(wanted, seconds=max(0.0, end - time.monotonic())))
    return code


def _measure_rivals(wanted: Wanted, beside: int, end: float) -> None:
    """Every pair beside torch.compile in a process of its own, so many at once."""
    path = Path(wanted.out) / "gpu.json"
    data = read(path)
    if data is None:
        return
    keys = [key for key in data["wanted"].get("compile", ()) if not has_rival(data["speed"].get(key, {}))]
    stopped = threading.Event()

    def take(key: str) -> Path:
        folder = Path(wanted.out) / "rivals" / key.replace(" ", "-")
        left = end - time.monotonic()
        if left >= _START and not stopped.is_set():
            variant, batch = wanted.pairs[key]
            pair = replace(
                wanted, out=str(folder), variants=(variant,), batches=(batch,), shared=wanted.out,
                seconds=left, parity_seconds=0.0, cpu=False,
            )  # fmt: skip
            hand_over(data, key, folder)
            supervise(pair, stopped)
        return folder

    with ThreadPoolExecutor(beside) as threads:
        try:
            for done in as_completed([threads.submit(take, key) for key in keys]):
                take_over(data, done.result())
                write(path, data)
        finally:
            stopped.set()


def supervise(wanted: Wanted, stopped: threading.Event | None = None) -> int:
    """Start workers until all is done or the time is over; the exit code of the last, DONE for the latter.

    A worker that dies or hangs costs the step that it was at, which is recorded as failed, and is followed by
    another; but not one that got nowhere. stopped: set where it is over before that.
    """
    path = Path(wanted.out) / "gpu.json"
    end = time.monotonic() + wanted.seconds - _GRACE
    stopped = threading.Event() if stopped is None else stopped
    forget(path)
    while True:
        before = steps_done(path)
        try:
            code = _work(wanted, end, path, stopped)
            if code in (None, DONE):
                return DONE
            if code == UNAVAILABLE:
                return UNAVAILABLE
            reason = f"ended with {_meaning(code)}"
        except Hangs as hangs:
            code, reason = None, f"was ended after {hangs}"
        blamed = code != RESTART and blame(path, f"the process {reason}")
        if not blamed and steps_done(path) == before:
            print(f"the measuring process {reason} before its first step.", file=sys.stderr)
            return 1
        if end - time.monotonic() < _START:
            return DONE


def _work(wanted: Wanted, end: float, path: Path, stopped: threading.Event) -> int | None:
    """The exit code of one worker, None where it was not done at ``end`` or when stopped. Raises Hangs."""
    worker = subprocess.Popen(
        [sys.executable, str(WORKER), json.dumps(asdict(replace(wanted, ends=end)))],
        stdin=subprocess.PIPE,  # it ends when this closes
        start_new_session=True,  # with its compilers
    )
    since = time.monotonic()
    written = 0
    limit = _BETWEEN
    try:
        while True:
            now = time.monotonic()
            with suppress(subprocess.TimeoutExpired):
                return worker.wait(max(0.0, min(end - now, _GLANCE)))
            if end <= now or stopped.is_set():
                return None
            last = path.stat().st_mtime_ns if path.exists() else 0
            if last != written:
                step = (read(path) or {}).get("now")
                written, since = last, now
                limit = _LIMITS[step[0]] if step else _BETWEEN
            elif now - since > limit:
                raise Hangs(f"{limit:g} s without any progress")
    finally:
        _end(worker)


def _end(worker: subprocess.Popen[bytes]) -> None:
    if worker.poll() is None:
        worker.terminate()
        with suppress(subprocess.TimeoutExpired):
            worker.wait(_GRACE)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(worker.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):  # one that is stuck in the driver ends when it can
        worker.wait(_GRACE)


def _meaning(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name


def main(arguments: list[str] | None = None) -> int:
    wanted, beside = parse(arguments)
    try:
        Path(wanted.out).mkdir(parents=True, exist_ok=True)
        (Path(wanted.out) / "gpu.new").touch()
    except OSError as error:
        print(f"--out {wanted.out} is no folder that can be written: {error.strerror}.", file=sys.stderr)
        return UNAVAILABLE
    (Path(wanted.out) / "gpu.new").unlink()
    # As for Ctrl-C: end the worker, and print what there is.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        code = measure(wanted, beside)
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    path = Path(wanted.out) / "gpu.json"
    data = read(path)
    if code == UNAVAILABLE or data is None:
        return code
    print(f"\n{report(data)}\n\nwritten to {path}")
    return code or int(bool(wrong(data)))


def parse(arguments: list[str] | None) -> tuple[Wanted, int]:
    """The options, checked, and how many run beside each other; exits with code 2 and a message otherwise."""
    default = Wanted("")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", required=True, metavar="DIR", help="for gpu.json and tiles")
    parser.add_argument(
        "--seconds",
        type=_seconds,
        default=default.seconds,
        help=f"for everything; default: {default.seconds:g}",
    )
    parser.add_argument(
        "--parity-seconds",
        type=_seconds,
        default=default.parity_seconds,
        help=f"of these for parity; 0 leaves it out; default: {default.parity_seconds:g}",
    )
    parser.add_argument(
        "--tune-seconds",
        type=_seconds,
        default=default.tune_seconds,
        help=f"and for tuning ahead; 0 leaves all tuning out; default: {default.tune_seconds:g}",
    )
    parser.add_argument(
        "--models",
        type=models,
        default=VARIANTS,
        help=f"of {','.join(MODELS)}; default: {','.join(VARIANTS)}",
    )
    parser.add_argument(
        "--batches",
        type=batches,
        default=BATCHES,
        help=f"most important first; default: {','.join(map(str, BATCHES))}",
    )
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument(
        "--beside",
        type=_count,
        default=max(1, min(6, len(os.sched_getaffinity(0)) // _CPUS)),
        help=f"processes with torch.compile at once; default: one for {_CPUS} processors, at most 6",
    )
    parser.add_argument("--no-cpu", action="store_true", help="leave the CPU engine out")
    parser.add_argument(
        "--prepared", type=_prepared, metavar="DIR", help="what bench/gpu/prepare.py made for this GPU"
    )
    parser.add_argument(
        "--cuda-seconds",
        type=_seconds,
        default=default.cuda_seconds,
        help=f"for the CUDA kernels, ahead of all else; 0 leaves them out; default: {default.cuda_seconds:g}",
    )
    parser.add_argument(
        "--sanitizer", choices=sanitizer.TOOLS, help="run small launches of the CUDA kernels under it"
    )
    parser.add_argument("--commit", help="to record where there is no git to ask")
    args = parser.parse_args(arguments)
    commit = args.commit
    if args.prepared is not None:
        commit = commit or git("rev-parse", "HEAD") or prepared.description(Path(args.prepared)).get("commit")
    wanted = Wanted(
        args.out,
        args.models,
        args.batches,
        args.seconds,
        args.parity_seconds,
        args.tune_seconds,
        not args.no_compile,
        not args.no_cpu,
        args.prepared,
        commit,
        cuda_seconds=args.cuda_seconds,
        sanitizer=args.sanitizer,
    )
    if args.sanitizer and wanted.cuda is None:
        parser.error("--sanitizer is for the CUDA kernels: name their folder with --prepared")
    return wanted, args.beside


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive number, but got {text!r}")
    return int(text)


def _prepared(text: str) -> str:
    try:
        prepared.check(Path(text))
    except prepared.Unusable as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number of seconds, but got {text!r}")
    return seconds


if __name__ == "__main__":
    sys.exit(main())
