"""``explain``: say what runs each block, and why."""

from __future__ import annotations

import argparse

from effv2_kernels.cli import models


def add_arguments(parser: argparse.ArgumentParser) -> None:
    models.add_arguments(parser, saved=True)
    models.add_run_arguments(parser)
    models.add_gpu_arguments(parser)
    parser.add_argument(
        "--tasks", action="store_true", help="of a network in one launch on a GPU, also its list of tasks"
    )


def run(args: argparse.Namespace) -> int:
    import effv2_kernels

    # A saved network may be made for images of another size than --img-size says by default.
    size = None if models.is_saved(args) else args.img_size
    print(effv2_kernels.explain(models.build_optimised(args), size, tasks=args.tasks))
    return 0
