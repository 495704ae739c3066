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

    fast = models.build_optimised(args)
    print(effv2_kernels.explain(fast, models.chosen_size(args), tasks=args.tasks))
    return 0
