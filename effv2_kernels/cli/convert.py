"""``convert``: fold a checkpoint into a file that loads without the model's code."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from effv2_kernels.cli import labels, models
from effv2_kernels.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        nargs="?",
        metavar="CHECKPOINT",
        help="the weights, as with --checkpoint; without either and --pretrained they are random",
    )
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

    if args.source is not None:
        _check_one_source(args)
        args.checkpoint = args.source
    _check_output(Path(args.output), args.checkpoint)
    fast = models.build_optimised(args)
    names = None if args.labels is None else labels.named(args.labels)
    effv2_kernels.save(fast, args.output, dtype=args.dtype, labels=names)
    if models.is_random(args):
        print(
            "The weights are random: give a checkpoint before OUTPUT, or --pretrained, for a network of use."
        )
    print(f"{args.output}: {os.path.getsize(args.output) / 1e6:.1f} MB")
    return 0


def _check_one_source(args: argparse.Namespace) -> None:
    other = "--pretrained" if args.pretrained else f"--checkpoint {args.checkpoint}"
    if args.pretrained or args.checkpoint is not None:
        raise InputError(
            f"the weights are given twice, as {args.source} and by {other}: leave out one of them. What is "
            f"written is named last: convert CHECKPOINT OUTPUT."
        )


def _check_output(output: Path, checkpoint: str | None) -> None:
    """Raise InputError where writing there would destroy something that is no saved network, or is read."""
    from effv2_kernels.checkpoint.files import is_saved_network, nature

    if not os.path.exists(output):
        return
    if checkpoint is not None and os.path.exists(checkpoint) and output.samefile(checkpoint):
        raise InputError(
            f"OUTPUT is {output}, the checkpoint itself: give another name for the file that is written."
        )
    if not is_saved_network(output):
        raise InputError(
            f"OUTPUT is {output}, which exists and {nature(output)}: nothing but a saved network is written "
            f"over. Give another name, or move it away; if it is the weights, give them first: convert "
            f"CHECKPOINT OUTPUT."
        )
