"""``convert``: fold a checkpoint into a file that loads without the model's code."""

from __future__ import annotations

import argparse
import os

from effv2_kernels.cli import labels, models


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", metavar="OUTPUT", help="the file to write, such as s0.effv2")
    models.add_arguments(parser)
    parser.add_argument(
        "--dtype",
        choices=("fp32", "fp16"),
        default="fp32",
        help="what the weights of products are stored in; fp16 halves the file. Default: fp32",
    )
    parser.add_argument(
        "--labels",
        metavar="FILE",
        help="names of the classes to go into the file, one per line; or 'imagenet' for those that timm has",
    )


def run(args: argparse.Namespace) -> int:
    import effv2_kernels

    fast = models.build_optimised(args)
    names = None if args.labels is None else labels.named(args.labels)
    effv2_kernels.save(fast, args.output, dtype=args.dtype, labels=names)
    if models.is_random(args):
        print("The weights are random: give --checkpoint or --pretrained for a network that is of use.")
    print(f"{args.output}: {os.path.getsize(args.output) / 1e6:.1f} MB")
    return 0
