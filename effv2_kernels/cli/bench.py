"""``bench``: time one model and what could be used instead."""

from __future__ import annotations

import argparse
import math

from effv2_kernels.cli import models
from effv2_kernels.errors import InputError
from effv2_kernels.progress import progress_bar


def add_arguments(parser: argparse.ArgumentParser) -> None:
    models.add_arguments(parser)
    models.add_run_arguments(parser)
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="images in one call; default: 1")
    parser.add_argument(
        "--rivals",
        default="eager",
        metavar="NAMES",
        help="eager (default), compile, onnxruntime, openvino, openvino_streams: one, several with commas, "
        "all that are installed (all), or none",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=10.0,
        metavar="S",
        help="of timing; default: 10. Conversion and compilation of the rivals come on top",
    )
    parser.add_argument("--json", metavar="FILE", help="also write everything measured")


def run(args: argparse.Namespace) -> int:
    from effv2_kernels import benchmarking
    from effv2_kernels.backends import check_threads
    from effv2_kernels.benchmarking import report

    if not 0 < args.seconds < math.inf:
        raise InputError(f"--seconds must be positive and finite, but got {args.seconds:g}.")
    if args.json is not None:
        benchmarking.check_writable(args.json)
    check_threads(args.threads)
    contestants = ["effv2", *rivals(args.rivals, args.batch)]
    images = models.random_images(args, args.batch)
    with progress_bar() as progress:
        found = benchmarking.compare(
            models.build(args),
            images,
            contestants,
            threads=args.threads,
            isa=args.isa,
            seconds=args.seconds,
            name=models.called(args),
            progress=progress,
        )
    print(report.one(found))
    if args.json is not None:
        benchmarking.write(args.json, [found])
        print(f"\nwritten to {args.json}")
    return int(found.entry("effv2").refused is not None)


def rivals(text: str, batch: int) -> list[str]:
    """The contestants that --rivals names; one image has only one way to run with OpenVINO.

    Raises UnknownNameError for a name that does not exist.
    """
    from effv2_kernels.benchmarking import contestants

    if text == "none":
        return []
    if text == "all":
        return [name for name in contestants.installed() if batch > 1 or name != "openvino_streams"]
    names = [name.strip() for name in text.split(",") if name.strip()]
    found = list(dict.fromkeys(contestants.find(name).name for name in names if name != "effv2"))
    if batch > 1 and "openvino" in found and "openvino_streams" not in found:
        found.append("openvino_streams")
    return found
