"""Two versions of the package beside each other: the same bits, and as fast.

python bench/versions/compare.py OLD [--new REVISION] [--networks s0 ...] [--batches 1 16] [--threads 1 2]

OLD, REVISION: what git calls a version; without --new it is the working tree, built by `make build`. Each
version runs in a process of its own (worker.py), OLD in two, and the processes take turns of some
milliseconds: a round gives the ratios new / old and, beside it, old / old, which says what a ratio is worth.
Exits with 1 where outputs differ (unless --other-bits) or a version is slower than allowed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

from effv2_kernels.tables import text_table

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TURN_SECONDS = 0.06
MIN_ROUNDS = 7
NETWORKS = ("s0", "s1", "s2", "l")


def main() -> int:
    args = _arguments()
    old = build(args.old)
    new = build(args.new) if args.new else ROOT
    print(f"old: {args.old}   new: {args.new or 'the working tree'}")
    starts = {} if args.no_start else start_ups(old, new, args.networks[0], args.start_rounds)
    workers = {"old": Worker(old), "new": Worker(new), "again": Worker(old)}
    rows, failures = [], []
    try:
        for name in args.networks:
            for batch in args.batches:
                for threads in args.threads:
                    row = compare(workers, name, batch, threads, args.seconds)
                    rows.append(row)
                    print(_line(row), flush=True)
                    if not row["same"] and not args.other_bits:
                        failures.append(f"{name}, batch {batch}, {threads} threads: other bits")
                    if row["ratio"] > args.most:
                        failures.append(f"{name}, batch {batch}, {threads} threads: {row['ratio']:.3f}")
    finally:
        for worker in workers.values():
            worker.close()
    mean = statistics.geometric_mean(row["ratio"] for row in rows)
    if mean > args.mean:
        failures.append(f"geometric mean: {mean:.4f}")
    print()
    print(report(rows, mean))
    for what, values in starts.items():
        print(f"{what}: old {values['old']:.3f}, new {values['new']:.3f}, ratio {values['ratio']:.3f}")
    if args.json:
        Path(args.json).write_text(
            json.dumps({"rows": rows, "mean": mean, "starts": starts}, indent=1) + "\n"
        )
    for failure in failures:
        print(f"too slow or not the same: {failure}", file=sys.stderr)
    return 1 if failures else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("old", metavar="OLD", help="a git revision")
    parser.add_argument("--new", metavar="REVISION", help="default: the working tree")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16], metavar="N")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], metavar="N")
    parser.add_argument("--seconds", type=float, default=15, help="of each case; default: 15")
    parser.add_argument("--most", type=float, default=1.02, help="new / old of a case; default: 1.02")
    parser.add_argument("--mean", type=float, default=1.005, help="geometric mean of all; default: 1.005")
    parser.add_argument("--other-bits", action="store_true", help="outputs may differ")
    parser.add_argument("--no-start", action="store_true", help="leave out start-up and memory")
    parser.add_argument("--start-rounds", type=int, default=7, metavar="N", help="processes each; default: 7")
    parser.add_argument("--json", metavar="FILE")
    return parser.parse_args()


def build(revision: str) -> Path:
    """The folder of a revision with its compiled module, under build/versions; made once."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(ROOT), *words], check=True, capture_output=True, text=True
        ).stdout.strip()

    try:
        commit = git("rev-parse", "--verify", f"{revision}^{{commit}}")
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"git knows no revision {revision!r} of {ROOT}: {error}") from error
    folder = ROOT / "build" / "versions" / commit[:12]
    if (folder / "built").exists():
        return folder
    print(f"building {revision} in {folder}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    archive = folder / "source.tar"
    git("archive", "--output", str(archive), commit)
    with tarfile.open(archive) as source:
        source.extractall(folder, filter="data")
    archive.unlink()
    pybind11 = subprocess.run(
        [sys.executable, "-m", "pybind11", "--cmakedir"], check=True, capture_output=True, text=True
    ).stdout.strip()
    configure = ["cmake", "-S", str(folder), "-B", str(folder / "build"), "-DCMAKE_BUILD_TYPE=Release"]
    configure += [f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11}"]
    configure += [f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={folder / 'effv2_kernels'}"]
    for command in (configure, ["cmake", "--build", str(folder / "build"), "--target", "_native", "-j"]):
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (folder / "built").touch()
    return folder


class Worker:
    """A process that has one version, and answers one question at a time."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "worker.py"), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **question: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"a worker ended with {self._process.wait()} at {question}")
        return json.loads(answer)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def compare(
    workers: dict[str, Worker], name: str, batch: int, threads: int, seconds: float
) -> dict[str, Any]:
    ready = {
        who: worker.ask(ask="prepare", network=name, batch=batch, threads=threads)
        for who, worker in workers.items()
    }
    calls = max(1, round(TURN_SECONDS / ready["old"]["seconds"]))
    order = list(workers)
    times: dict[str, list[float]] = {who: [] for who in order}
    start = time.perf_counter()
    while len(times["old"]) < MIN_ROUNDS or time.perf_counter() - start < seconds:
        for who in order:
            times[who].append(statistics.median(workers[who].ask(ask="time", calls=calls)))
        order = order[1:] + order[:1]
    ratios = [new / old for new, old in zip(times["new"], times["old"], strict=True)]
    control = [again / old for again, old in zip(times["again"], times["old"], strict=True)]
    return {
        "network": name,
        "batch": batch,
        "threads": threads,
        "rounds": len(ratios),
        "milliseconds": 1e3 * statistics.median(times["old"]),
        "ratio": statistics.median(ratios),
        "control": statistics.median(control),
        "same": ready["old"]["digest"] == ready["new"]["digest"],
    }


def start_ups(old: Path, new: Path, name: str, rounds: int) -> dict[str, dict[str, float]]:
    """Seconds of import, of optimize and of the first call, and the most memory, in fresh processes."""
    found: dict[str, dict[str, list[float]]] = {}
    for turn in range(rounds):
        versions = [("old", old), ("new", new)]
        for who, folder in versions if turn % 2 else reversed(versions):
            worker = Worker(folder)
            for what, value in worker.ask(ask="start", network=name).items():
                found.setdefault(what, {"old": [], "new": []})[who].append(value)
            worker.close()
    return {
        what: {
            "old": statistics.median(values["old"]),
            "new": statistics.median(values["new"]),
            "ratio": statistics.median(n / o for n, o in zip(values["new"], values["old"], strict=True)),
        }
        for what, values in found.items()
    }


def report(rows: list[dict[str, Any]], mean: float) -> str:
    cells = [
        [
            row["network"],
            str(row["batch"]),
            str(row["threads"]),
            f"{row['milliseconds']:.2f}",
            f"{row['ratio']:.4f}",
            f"{row['control']:.4f}",
            "yes" if row["same"] else "no",
        ]
        for row in rows
    ]
    control = statistics.geometric_mean(row["control"] for row in rows)
    cells.append(["geometric mean", "", "", "", f"{mean:.4f}", f"{control:.4f}", ""])
    header = ["network", "batch", "threads", "old ms", "new / old", "old / old", "same bits"]
    return text_table(header, cells, left=1)


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['network']:>3}, batch {row['batch']:>2}, {row['threads']} threads: "
        f"{row['ratio']:.4f} ({row['control']:.4f}), {row['rounds']} rounds"
    )


if __name__ == "__main__":
    raise SystemExit(main())
