"""``scaling``: count how the work of networks divides among threads."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effv2_kernels.cli import models
from effv2_kernels.errors import UnavailableError
from effv2_kernels.search.panel import check, panels

if TYPE_CHECKING:
    from effv2_kernels.scaling import Division

MODELS = tuple(f"efficientformerv2_{name}" for name in ("s0", "s1", "s2", "l"))
THREADS = (1, 2, 4, 8, 16, 32, 64, 128)

# (batch of one image, four images for each thread), for each number of threads
Pairs = list[tuple["Division", "Division"]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--models", nargs="+", default=MODELS, metavar="NAME", help="default: EfficientFormerV2 S0 to L"
    )
    parser.add_argument(
        "--threads", nargs="+", type=int, default=THREADS, metavar="N", help="default: 1, 2, 4 ... 128"
    )
    parser.add_argument(
        "--img-size",
        type=models.image_size,
        default=(224, 224),
        metavar="SIZE",
        help="224 (default) or ROWSxCOLUMNS",
    )
    parser.add_argument(
        "--isa", metavar="NAME", help="whose panels and tiles; default: AVX2's and AVX-512's, on any machine"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also draw it, .svg or .png")


def run(args: argparse.Namespace) -> int:
    try:
        from rich.console import Console
    except ImportError as error:
        raise UnavailableError(f"scaling needs {error.name}: pip install 'effv2_kernels[cli]'.") from error
    from effv2_kernels import create_model, scaling, sources

    if args.plot is not None:
        check(args.plot)
    found: dict[str, dict[str, Pairs]] = {isa: {} for isa in ([args.isa] if args.isa else scaling.ISAS)}
    for name in args.models:
        network = sources.read(create_model(name, img_size=args.img_size))
        for isa, by_model in found.items():
            by_model[name] = list(scaling.divisions(network, isa, args.img_size, args.threads))
    console = Console(highlight=False)
    for isa, by_model in found.items():
        for name, pairs in by_model.items():
            console.print(_table(f"{name}, {isa}, {'x'.join(map(str, args.img_size))}", pairs))
    console.print(
        "busiest: its part of the multiply-adds, of the images that all threads have; twice: what threads do "
        "beside each other.\nspeed-up: counted, not timed; a meeting of threads is taken to cost "
        f"{scaling.MEETING:,} multiply-adds."
    )
    if args.plot is not None:
        _draw(found, args.plot)
        console.print(f"wrote {args.plot}")
    return 0


def _table(title: str, pairs: Pairs) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title)
    for column in ("threads", "images", "busiest", "twice", "meetings per image", "speed-up"):
        table.add_column(column, justify="right")
    for pair in pairs:
        for division in pair:
            table.add_row(
                str(division.threads),
                str(division.images),
                f"{division.share:.2%}",
                f"{division.twice:.1%}",
                f"{division.meetings_per_image:.0f}",
                f"{division.speedup:.1f}",
            )
    return table


def _draw(found: dict[str, dict[str, Pairs]], path: Path) -> None:
    with panels(path, 4.6 * len(found), 3.8, len(found)) as side_by_side:
        for axes, (isa, by_model) in zip(side_by_side, found.items(), strict=True):
            for name, pairs in by_model.items():
                threads = [single.threads for single, _ in pairs]
                speedups = [single.speedup for single, _ in pairs]
                axes.plot(threads, speedups, marker="o", markersize=3, label=name)
            _ideal(axes, sorted({single.threads for pairs in by_model.values() for single, _ in pairs}))
            axes.set_title(f"{isa}, one image", fontsize=10)
            axes.set_xlabel("threads")
        side_by_side[0].set_ylabel("times one thread's speed, by count")
        side_by_side[0].legend(frameon=False, fontsize=8)


def _ideal(axes: Any, threads: Sequence[int]) -> None:
    axes.plot(threads, threads, color="black", linewidth=0.8, linestyle="--", label="threads")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
