"""``convert``: fold a checkpoint into a file that loads without the model's code."""

from __future__ import annotations

import argparse
import os

from effv2_kernels.cli import models


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", metavar="OUTPUT", help="the file to write, such as s0.effv2")
    models.add_arguments(parser)
    parser.add_argument(
        "--dtype",
        choices=("fp32", "fp16"),
        default="fp32",
        help="what the weights of products are stored in; fp16 halves the file. Default: fp32",
    )


def run(args: argparse.Namespace) -> int:
    import effv2_kernels

    fast = models.build_optimised(args)
    effv2_kernels.save(fast, args.output, dtype=args.dtype)
    if models.is_random(args):
        print("The weights are random: give --checkpoint or --pretrained for a network that is of use.")
    print(f"{args.output}: {os.path.getsize(args.output) / 1e6:.1f} MB")
    return 0
