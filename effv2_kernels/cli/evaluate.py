"""``evaluate``: top-1 and top-5, and whether the optimised model takes the same class for every image."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from effv2_kernels.cli import datasets, models
from effv2_kernels.errors import CheckpointError
from effv2_kernels.progress import progress_bar

if TYPE_CHECKING:
    from torch import Tensor, nn

    from effv2_kernels.train import Data, Processes

_SHOWN = 5  # images that a message names


def add_arguments(parser: argparse.ArgumentParser) -> None:
    datasets.add_arguments(parser)
    models.add_network_arguments(parser)
    models.add_weight_arguments(parser)
    parser.add_argument("--img-size", type=int, default=224, metavar="N", help="default: 224")
    parser.add_argument("--crop", type=float, default=0.95, metavar="SHARE", help="default: 0.95, timm's")
    parser.add_argument(
        "--interpolation",
        default="bicubic",
        metavar="NAME",
        help="of resized pictures; default: bicubic",
    )
    parser.add_argument("--batch", type=int, default=64, metavar="N", help="images at once; default: 64")
    models.add_run_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from effv2_kernels.train import packages

    packages.require()
    import effv2_kernels
    from effv2_kernels.train import Recipe, open_data, processes, validation_loader

    if args.checkpoint is None and not args.pretrained:
        raise CheckpointError("there are no weights to evaluate: give --checkpoint FILE or --pretrained.")
    data = open_data(args.data, dataset=args.dataset, channels=args.in_channels, classes=args.num_classes)
    model = models.create(args, data.classes, lambda count: _of_other_classes(data, count))
    options = {name: getattr(args, name) for name in ("isa", "threads") if getattr(args, name) is not None}
    fast = effv2_kernels.optimize(model, **options)
    recipe = Recipe(
        img_size=args.img_size,
        crop=args.crop,
        interpolation=args.interpolation,
        batch=args.batch,
        mixup=0,
        cutmix=0,
    )
    with processes("cpu") as group:
        loader = validation_loader(data, recipe, group, workers=args.workers, channels=args.in_channels)
        found = compare(model, fast, loader, data, group)
    size = f"{args.img_size}x{args.img_size}"
    print(f"{models.called(args)}, {found.images} images of {data.classes} classes, {size}")
    print(f"{'':10} {'top-1':>8} {'top-5':>8}")
    for name, values in (("plain", found.plain), ("optimised", found.optimised)):
        print(f"{name:10} {values['top1']:8.2%} {values['top5']:8.2%}")
    print(found.verdict())
    return int(bool(found.differing))


def _of_other_classes(data: Data, count: int) -> str:
    if data.names is None:  # how many there are was said by an option
        return f"the weights tell {count} classes apart: give --num-classes {count}"
    return (
        f"the weights tell {count} classes apart, and the data has {data.classes}: give a --checkpoint that "
        f"was trained on these classes, or the --data of the others"
    )


class Comparison:
    """plain, optimised: {"top1", "top5"}; differing: what to say of every image that is classed otherwise."""

    def __init__(self) -> None:
        self.images = 0
        self.plain: dict[str, float] = {}
        self.optimised: dict[str, float] = {}
        self.differing: list[str] = []

    def verdict(self) -> str:
        """What is printed last."""
        if not self.differing:
            return f"the same class for each of {self.images} images"
        more = len(self.differing) - _SHOWN
        lines = self.differing[:_SHOWN] + ([f"and {more} more"] if more > 0 else [])
        return "\n".join([f"DIFFERENT for {len(self.differing)} of {self.images} images:", *lines])


def compare(model: nn.Module, fast: nn.Module, loader: Any, data: Data, group: Processes) -> Comparison:
    """Run both on all images."""
    import torch

    from effv2_kernels.train.data import batches
    from effv2_kernels.train.evaluation import Accuracy

    found = Comparison()
    plain, optimised = (Accuracy(data.classes, group.device) for _ in range(2))
    with torch.inference_mode(), progress_bar() as progress:
        for number, (images, targets) in enumerate(batches(loader)):
            expected, actual = model(images), fast(images)
            plain.update(expected, targets)
            optimised.update(actual, targets)
            for i in (expected.argmax(1) != actual.argmax(1)).nonzero().flatten().tolist():
                found.differing.append(_told(data, found.images + i, expected[i], actual[i]))
            found.images += len(images)
            progress(f"{found.images} images", (number + 1) / len(loader))
    found.plain, found.optimised = plain.compute(), optimised.compute()
    return found


def _told(data: Data, index: int, expected: Tensor, actual: Tensor) -> str:
    name = data.validation.name(index) if hasattr(data.validation, "name") else f"image {index}"
    margin = expected.topk(2).values
    return (
        f"{name}: class {int(expected.argmax())} plain, {int(actual.argmax())} optimised; the first is ahead "
        f"by {float(margin[0] - margin[1]):.2e}"
    )
