"""``latency``: measure what networks of a search space take on a device, and prove what that predicts."""

from __future__ import annotations

import argparse
import math
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from effv2_kernels import backends, extras
from effv2_kernels.errors import InputError

if TYPE_CHECKING:
    from effv2_kernels.search.latency import LatencyTable
    from effv2_kernels.search.latency.timer import Timer
    from effv2_kernels.search.space import SearchSpace

_DEVICES = re.compile(r"cpu|cuda(:\d+)?")
_DEFAULTS = {"batch": 1, "classes": 1000, "dtype": "fp32"}

EPILOG = """\
python -m effv2_kernels latency --out table.json                       measure; again: go on where it ended
python -m effv2_kernels latency --prove table.json --plot proof.svg    50 networks that the table never saw
python -m effv2_kernels latency --operators --plot operators.svg       where the time of S0 to L goes

another machine, such as a phone:
python -m effv2_kernels latency --export DIR                           there, for each network of the folder:
    effv2-run NAME.effv2 --img-size 224x224 --profile --json > NAME.json
python -m effv2_kernels latency --device DIR --name "Pixel 6" --out table.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog, parser.formatter_class = EPILOG, argparse.RawDescriptionHelpFormatter
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=Path, metavar="FILE", help="measure a table, and write it here")
    what.add_argument("--prove", type=Path, metavar="FILE", help="time random networks beside this table")
    what.add_argument("--operators", action="store_true", help="time S0 to L by the kind of their blocks")
    what.add_argument("--export", type=Path, metavar="DIR", help="write networks to time elsewhere")
    parser.add_argument(
        "--space",
        default="efficientformerv2",
        metavar="NAME",
        help="efficientformerv2 (default), fashion, or a file",
    )
    parser.add_argument(
        "--device",
        default="cpu",
        metavar="NAME",
        help="cpu (default), cuda, cuda:1, or a folder with reports of effv2-run; one that is called "
        "cpu is ./cpu",
    )
    parser.add_argument("--name", metavar="TEXT", help="of the machine that reports come from")
    parser.add_argument("--dtype", metavar="NAME", help="fp32 (default), fp16 or bf16")
    parser.add_argument("--isa", metavar="NAME", help="instruction set; default: the best of this machine")
    parser.add_argument("--threads", type=int, metavar="N", help="default: torch.get_num_threads()")
    parser.add_argument("--batch", type=int, metavar="N", help="images in one call; default: 1")
    parser.add_argument("--classes", type=int, metavar="N", help="default: 1000")
    parser.add_argument("--seed", type=int, default=0, help="of the networks that are timed; default: 0")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=0.005,
        metavar="SHARE",
        help="measure until two halves of the rounds agree within this; default: 0.005",
    )
    parser.add_argument(
        "--rounds", type=int, default=40, metavar="N", help="but so many at most; default: 40"
    )
    parser.add_argument("--networks", type=int, default=50, metavar="N", help="of --prove; default: 50")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="of --prove and --operators: .svg or .png")


def run(args: argparse.Namespace) -> int:
    from effv2_kernels.search import panel
    from effv2_kernels.search.space import SearchSpace

    needed = [*(["scipy"] if args.out or args.prove else []), *(["matplotlib"] if args.plot else [])]
    extras.require("a latency table, or a plot,", needed, "search")
    proved = None if args.prove is None else _take_from_table(args)
    for name, default in _DEFAULTS.items():
        if getattr(args, name) is None:
            setattr(args, name, default)
    if min(args.batch, args.classes, args.rounds, args.networks) < 1:
        raise InputError("--batch, --classes, --rounds and --networks must be positive.")
    if not 0 < args.tolerance < math.inf:
        raise InputError(
            f"--tolerance must be a finite share above 0, such as 0.005, but got {args.tolerance:g}."
        )
    backends.check_threads(args.threads)
    if args.export is not None and args.dtype not in ("fp32", "fp16"):
        raise InputError(
            f"saved networks hold fp32 or fp16, but --dtype is {args.dtype}; effv2-run computes in "
            f"any: give it --dtype {args.dtype} there."
        )
    if args.plot is not None:
        panel.check(args.plot)
    space = SearchSpace.read(args.space)
    if args.export is not None:
        return _export(args, space)
    if proved is not None:
        return _prove(args, space, proved)
    if args.operators:
        return _operators(args, space)
    return _measure(args, space)


def _take_from_table(args: argparse.Namespace) -> LatencyTable:
    """The table to prove; a proof times what it is of. Raises InputError for options that say otherwise."""
    from effv2_kernels.search.latency import LatencyTable

    table = LatencyTable.read(args.prove)
    device = table.device
    of_table = {
        "batch": device.batch,
        "classes": table.task.classes,
        "dtype": device.dtype,
        "threads": device.threads,
        "isa": device.runs if args.device == "cpu" else None,
    }
    for name, value in of_table.items():
        given = getattr(args, name)
        if given not in (None, value):
            raise InputError(
                f"--{name} is {given}, and the table to prove, {args.prove}, is of {value}: leave it out."
            )
        setattr(args, name, value)
    return table


def _measure(args: argparse.Namespace, space: SearchSpace) -> int:
    from effv2_kernels.progress import progress_bar
    from effv2_kernels.search.latency.measuring import measure
    from effv2_kernels.search.latency.reports import table_of_reports

    if not _DEVICES.fullmatch(args.device) and Path(args.device).is_dir():
        if args.name is None:
            raise InputError("reports do not say which machine they come from: give its --name.")
        table = table_of_reports(Path(args.device), args.name)
        table.save(args.out)
        doubts, advice = table.doubts(), "Make the reports again where little else runs"
    else:
        with progress_bar() as progress:
            measured = measure(
                space,
                _timer(args, space),
                args.out,
                seed=args.seed,
                tolerance=args.tolerance,
                rounds=args.rounds,
                progress=progress,
            )
        table, doubts = measured.table, measured.doubts(args.tolerance)
        advice = (
            f"Measure where little else runs: the same command goes on, with more --rounds where they "
            f"are spent, and starts anew without {args.out}.readings"
        )
    print(_summary(table))
    print(f"wrote {args.out}")
    if doubts:
        print(f"{' '.join(doubts)} {advice}.", file=sys.stderr)
    return 0


def _prove(args: argparse.Namespace, space: SearchSpace, table: LatencyTable) -> int:
    from effv2_kernels.progress import progress_bar
    from effv2_kernels.search.latency.proof import draw, prove

    timer = _timer(args, space)
    table.require(timer.device)
    with progress_bar() as progress:
        proof = prove(table, space, timer, networks=args.networks, seed=args.seed, progress=progress)
    print(proof)
    if args.plot is not None:
        draw(proof, args.plot)
        print(f"wrote {args.plot}")
    if doubts := proof.doubts:
        print(
            f"The table does not hold here: {'; '.join(doubts)}. Prove it again where little else runs; if "
            f"that says the same, measure it again.",
            file=sys.stderr,
        )
    return 1 if doubts else 0


def _operators(args: argparse.Namespace, space: SearchSpace) -> int:
    from effv2_kernels.families.efficientformer_v2.architecture import VARIANTS
    from effv2_kernels.search.latency.operators import KINDS, draw_by_kind, times_by_kind
    from effv2_kernels.tables import text_table

    timer = _timer(args, space)
    found = times_by_kind({name.rpartition("_")[2].upper(): sizes for name, sizes in VARIANTS.items()}, timer)
    rows = [
        (name, *(f"{times.get(kind, 0.0):.3f}" for kind in KINDS), f"{sum(times.values()):.3f}")
        for name, times in found.items()
    ]
    print(f"{timer.device.unit} by kind of block; {_text(timer)}")
    print(text_table(["", *KINDS, "all"], rows, left=1))
    if args.plot is not None:
        draw_by_kind(found, timer.device.unit, args.plot)
        print(f"wrote {args.plot}")
    return 0


def _export(args: argparse.Namespace, space: SearchSpace) -> int:
    import random

    from effv2_kernels.search.latency import Task
    from effv2_kernels.search.latency.measuring import carriers
    from effv2_kernels.search.latency.reports import command, export

    networks = carriers(space, Task.of(space, args.classes), random.Random(args.seed))
    export(networks, space, args.classes, args.export, args.dtype)
    print(f"wrote {len(networks)} networks to {args.export}. There, or where you copy it, for each of them:")
    print(f"  {command(space)}")
    return 0


def _timer(args: argparse.Namespace, space: SearchSpace) -> Timer:
    from effv2_kernels.search.latency.timer import Timer

    return Timer(
        space.img_size,
        in_channels=space.in_channels,
        classes=args.classes,
        batch=args.batch,
        device=args.device,
        dtype=args.dtype,
        threads=args.threads,
        isa=args.isa,
    )


def _text(timer: Timer) -> str:
    device = timer.device
    threads = "" if device.threads is None else f", {device.threads} threads"
    return f"{device.name}, {device.runs}, {device.dtype}{threads}, batch {device.batch}"


def _summary(table: LatencyTable) -> str:
    device = table.device
    spread = sorted(block.spread for block in table.blocks.values())
    return (
        f"{len(table.blocks)} blocks on {device.name} ({device.runs}, {device.dtype}, batch {device.batch}); "
        f"a call takes {table.call:.4f} {device.unit} beside its blocks, and {table.step:.5f} for each; "
        f"relative standard error of a block: median {spread[len(spread) // 2]:.1%}, largest "
        f"{spread[-1]:.1%}; off for the networks that it was made of: {table.error:.1%} in the median"
    )
