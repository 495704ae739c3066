"""``classify``: say what is on a photograph."""

from __future__ import annotations

import argparse

from effv2_kernels import photo
from effv2_kernels.cli import labels, models


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

    from effv2_kernels.model.optimized import OptimizedModel

    # A saved network knows for itself what it takes; a model is large for images of any size, pictures first.
    fast = models.build_optimised(args) if models.is_saved(args) else None
    channels = fast.engine.in_channels if isinstance(fast, OptimizedModel) else args.in_channels
    inputs = [photo.read(path, args.img_size, channels) for path in args.images]
    fast = models.build_optimised(args) if fast is None else fast
    if models.is_random(args):
        print("The weights are random, so the classes mean nothing: give --checkpoint or --pretrained.")
    own = vars(fast).get("labels") if models.is_saved(args) else None
    for path, image in zip(args.images, inputs, strict=True):
        with torch.inference_mode():
            probabilities = fast(image)[0].softmax(0)
        names = labels.choose(args.labels, len(probabilities), own)
        print(path)
        values, indices = probabilities.topk(min(max(args.top, 1), len(probabilities)))
        for value, index in zip(values.tolist(), indices.tolist(), strict=True):
            print(f"  {value:7.2%}  {labels.describe(names, index)}")
    return 0
