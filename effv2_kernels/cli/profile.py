"""``profile``: time every block of a model."""

from __future__ import annotations

import argparse

from effv2_kernels.cli import models


def add_arguments(parser: argparse.ArgumentParser) -> None:
    models.add_arguments(parser, saved=True)
    models.add_run_arguments(parser)
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="images in one call; default: 1")


def run(args: argparse.Namespace) -> int:
    import effv2_kernels

    fast = models.build_optimised(args)
    print(effv2_kernels.profile(fast, models.random_images(args, args.batch, fast)))
    return 0
