"""The options by which commands are told their images."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--data, --dataset, --num-classes, --in-channels and --workers."""
    add_places(parser)
    parser.add_argument(
        "--num-classes", type=int, metavar="N", help="of a dataset that does not say how many it has"
    )
    parser.add_argument(
        "--in-channels", type=int, default=3, metavar="N", help="3 (default), or 1 for grey pictures"
    )


def add_places(parser: argparse.ArgumentParser, *, more: str = "") -> None:
    """--data, --dataset and --workers. more: what else --data may be."""
    parser.add_argument(
        "--data",
        required=True,
        metavar="DIR",
        help=f"a folder with train/CLASS/*.jpg and val/CLASS/*.jpg; where another dataset is stored{more}",
    )
    parser.add_argument(
        "--dataset",
        default="",
        metavar="NAME",
        help="another dataset than folders, as timm names it: torch/fashion_mnist, torch/cifar10, hfds/...",
    )
    parser.add_argument(
        "--workers", type=int, default=4, metavar="N", help="processes that load images; default: 4"
    )
