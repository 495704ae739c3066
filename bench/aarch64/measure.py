"""Count what a network executes on 64-bit Arm, here and in ncnn, and model its time: `make bench-aarch64`.

python bench/aarch64/measure.py [--json build/aarch64/bench.json] [--networks s0,l] [--record] [--check]

Prints the tables and writes everything as JSON. Fails where a result is wrong or S0 executes over 1 % more
than is recorded in bench/results/aarch64.json; with --check also where a target is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import effv2_kernels
from bench.aarch64 import counting, latency, llvm, loops, networks, report, targets
from bench.aarch64.cores import CORES
from bench.aarch64.instructions import count
from effv2_kernels.benchmarking.targets import MODELS
from effv2_kernels.families import short, variant_named

OBJECTS = "build/wheels/aarch64/engine/CMakeFiles"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", metavar="FILE", type=Path, default=counting.FOLDER / "bench.json")
    parser.add_argument("--networks", default=",".join(MODELS), help="e.g. s0,l or in full; default: all")
    objects_option(parser)
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="emulators at a time; default: 2")
    parser.add_argument(
        "--record", action="store_true", help="keep what is found, and put it into docs/arm.md and README.md"
    )
    parser.add_argument("--check", action="store_true", help="fail where a target is missed")
    args = parser.parse_args()
    chosen = [variant_named(name) for name in args.networks.split(",")]
    if args.record and set(chosen) != set(MODELS):
        parser.error("what is recorded has all networks")

    result = measure(chosen, args.objects, args.jobs)
    args.json.write_text(json.dumps(result, indent=1) + "\n")
    for name, table in report.TABLES.items():
        print(f"\n== {name}\n\n{table(result)}")
    if args.record:
        report.RECORDED.write_text(json.dumps(result, indent=1) + "\n")
        report.fill(report.PAGE, report.README, result)
        print(f"\nrecorded in {report.RECORDED}, {report.PAGE} and {report.README}")
    risen = targets.over_budget(result, json.loads(report.RECORDED.read_text()))
    print("", *risen, sep="\n")
    missed = args.check and any(target.met is not True for target in targets.judged(result))
    return int(bool(risen or missed))


def objects_option(parser: argparse.ArgumentParser) -> None:
    """--objects."""
    parser.add_argument(
        "--objects",
        metavar="FOLDER",
        type=Path,
        default=report.ROOT / OBJECTS,
        help="of the wheel's build, which has effv2_neon_fp32.dir",
    )


def measure(chosen: list[str], objects: Path, jobs: int) -> dict[str, Any]:
    """Everything, as it is written as JSON.

    size, cpu   of the image, and QEMU's name of the processor
    versions    by name
    weights     by network, its values
    counts      network, engine, format, instructions (``Counts``), cycles by core, error (relative L2)
    absent      network, engine, format, why
    loops       what ``loops.measure`` returns
    """
    files = []
    for name in chosen:
        _tell(f"{short(name)}: a model, its blocks and ncnn's version of it")
        files.append(networks.write(counting.FOLDER / "networks", name))
    # The longest first, so that none is left over for one process at the end.
    wanted = [
        (f, engine, fmt)
        for fmt in reversed(targets.FORMATS)
        for f in sorted(files, key=lambda f: -f.effv2.stat().st_size)
        for engine in report.ENGINES
    ]
    with ThreadPoolExecutor(jobs) as pool:
        rows = list(pool.map(lambda each: _row(*each), wanted))
    formats = sorted(
        {row["format"] for row in rows if row["engine"] == "effv2" and "why" not in row}, reverse=True
    )
    (module,) = (counting.PACKAGES["effv2"] / "effv2_kernels").glob("_native.*.so")
    return {
        "size": networks.SIZE,
        "cpu": counting.CPU,
        "versions": {
            "effv2_kernels": effv2_kernels.__version__,
            "ncnn": _version(counting.PACKAGES["ncnn"], "ncnn"),
            "pnnx": metadata.version("pnnx"),
            "LLVM": str(llvm.VERSION),
        },
        "weights": {f.name: f.values for f in files},
        "counts": [row for row in rows if "why" not in row],
        "absent": [row for row in rows if "why" in row],
        "loops": [
            row
            for fmt in formats
            for row in loops.measure(objects / f"effv2_neon_{fmt}.dir/csrc/cpu", module, fmt)
        ],
    }


def _row(files: networks.Files, engine: str, fmt: str) -> dict[str, Any]:
    named = {"network": files.name, "engine": engine, "format": fmt}
    run = counting.count(files, engine, fmt)
    if isinstance(run, str):
        return {**named, "why": run}
    found = count(run.blocks)
    _tell(f"{short(files.name)} {fmt}, {engine}: {found.total / 1e6:.1f} million instructions")
    return {
        **named,
        "instructions": asdict(found),
        "cycles": {core.name: latency.cycles(run.blocks, core) for core in CORES.values()},
        "error": run.error,
    }


def _version(folder: Path, package: str) -> str:
    return next(iter(metadata.distributions(name=package, path=[str(folder)]))).version


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
