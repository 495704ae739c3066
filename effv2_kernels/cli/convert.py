"""``convert``: fold a checkpoint into a file that loads without the model's code."""

from __future__ import annotations

import argparse
import os

from effv2_kernels.cli import models


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", metavar="OUTPUT", help="the file to write, such as s0.effv2")
    models.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    import effv2_kernels

    fast = models.build_optimised(args)
    effv2_kernels.save(fast, args.output)
    if models.is_random(args):
        print("The weights are random: give --checkpoint or --pretrained for a network that is of use.")
    print(f"{args.output}: {os.path.getsize(args.output) / 1e6:.1f} MB")
    return 0
