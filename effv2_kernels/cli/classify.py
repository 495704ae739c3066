"""``classify``: say what is on a photograph."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from effv2_kernels import photo
from effv2_kernels.cli import labels, models
from effv2_kernels.errors import InputError, ModelError

if TYPE_CHECKING:
    from torch import nn


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="photographs (JPEG, PNG, ...; of an animation the first frame)",
    )
    models.add_arguments(parser, saved=True)
    models.add_run_arguments(parser)
    parser.add_argument("--top", type=int, default=5, metavar="N", help="classes to print; default: 5")
    parser.add_argument(
        "--labels",
        metavar="FILE",
        help="names, one line per class; default: a saved network's own, or ImageNet's if timm is installed",
    )


def run(args: argparse.Namespace) -> int:
    import torch

    if args.top < 1:
        raise InputError(f"--top must be at least 1, but got {args.top}.")
    if args.num_classes == 0:
        raise _without_classes("--num-classes 0 makes a network", "give the number of its classes")
    # A saved network knows for itself what it takes; a model is large for images of any size, pictures first.
    fast = models.build_optimised(args) if models.is_saved(args) else None
    if fast is not None and not _classifies(fast):
        raise _without_classes(f"{args.checkpoint} is a network", "give one that has a classifier")
    channels, size = models.image_shape(args, fast)
    inputs = [photo.read(path, size, channels) for path in args.images]
    fast = models.build_optimised(args) if fast is None else fast
    if models.is_random(args):
        print("The weights are random, so the classes mean nothing: give --checkpoint or --pretrained.")
    own = vars(fast).get("labels") if models.is_saved(args) else None
    for path, image in zip(args.images, inputs, strict=True):
        with torch.inference_mode():
            probabilities = fast(image)[0].softmax(0)
        names = labels.choose(args.labels, len(probabilities), own)
        print(path)
        values, indices = probabilities.topk(min(args.top, len(probabilities)))
        for value, index in zip(values.tolist(), indices.tolist(), strict=True):
            print(f"  {value:7.2%}  {labels.describe(names, index)}")
    return 0


def _classifies(fast: nn.Module) -> bool:
    """Whether a saved network has a classifier. Without one its head scales features, or there is none."""
    import torch

    from effv2_kernels import blocks
    from effv2_kernels.model import OptimizedModel

    if not isinstance(fast, OptimizedModel):
        return True
    head = fast.network.blocks[-1]
    if not isinstance(head, blocks.Head):
        return False
    weight = head.linear.weight
    return weight.shape[0] != weight.shape[1] or not torch.equal(weight, weight.diag().diag())


def _without_classes(what: str, advice: str) -> ModelError:
    return ModelError(f"{what} without a classifier, whose outputs are features and no classes: {advice}.")
