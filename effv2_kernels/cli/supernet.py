"""``supernet``: train the weights of every network of a search space at once; see docs/search.md."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from effv2_kernels.cli import datasets, recipes
from effv2_kernels.errors import InputError
from effv2_kernels.train import packages
from effv2_kernels.train.recipe import Recipe

if TYPE_CHECKING:
    from torch import Tensor, nn

    from effv2_kernels.search.space import SearchSpace
    from effv2_kernels.search.supernet import Supernet
    from effv2_kernels.train import Processes
    from effv2_kernels.train.run import Run

FILE = "supernet.safetensors"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    datasets.add_arguments(parser)
    recipes.add_arguments(parser, several="supernet")
    parser.add_argument(
        "--space",
        default="efficientformerv2",
        metavar="NAME",
        help="efficientformerv2 (default), fashion, or a file",
    )
    parser.add_argument(
        "--hold-out",
        type=float,
        default=0.05,
        metavar="SHARE",
        help="of the training images, which are not trained on: `search` compares subnets on them, so that "
        "those to evaluate on stay unseen; default: 0.05; 0: compare on those to evaluate on",
    )
    parser.add_argument(
        "--random-subnets",
        type=int,
        default=2,
        metavar="N",
        help="of a step, beside the largest and the smallest network; default: 2",
    )
    parser.add_argument(
        "--layer-scale",
        type=float,
        default=1e-5,
        metavar="VALUE",
        help="at which layer scales begin; default: 1e-5, as published, for hundreds of epochs",
    )


def run(args: argparse.Namespace) -> int:
    _check_numbers(args)
    packages.require()
    from effv2_kernels.search.space import SearchSpace
    from effv2_kernels.train import processes

    space = SearchSpace.read(args.space)
    recipe = _recipe(args, space)
    with processes(args.device) as group:
        _train(args, space, recipe, group)
    return 0


def _check_numbers(args: argparse.Namespace) -> None:
    """Of those that no recipe has. What a share comes to in images is known where they are opened."""
    if not 0 <= args.hold_out < 1:  # of NaN this is not true either
        raise InputError(
            f"--hold-out must be a share of at least 0 and below 1, such as 0.05, but got {args.hold_out}."
        )
    if not math.isfinite(args.layer_scale):
        raise InputError(f"--layer-scale must be a number, such as 1e-5, but got {args.layer_scale}.")


def _recipe(args: argparse.Namespace, space: SearchSpace) -> Recipe:
    """Of images of the space's size."""
    rows, columns = space.img_size
    if rows != columns:
        raise InputError(
            f"training takes square images, and those of the space have {rows}x{columns} pixels."
        )
    if args.in_channels != space.in_channels:
        channels = space.in_channels
        raise InputError(f"the space is for images of {channels} channels: give --in-channels {channels}.")
    recipe = recipes.recipe_of(args)
    told = args.img_size is not None or any(s.partition("=")[0].strip() == "img_size" for s in args.set)
    if told and recipe.img_size != rows:
        raise InputError(
            f"a supernet takes images of its space's size, here {rows}x{rows}, but --img-size is "
            f"{recipe.img_size}: leave it out, or give another img_size in the file of --space."
        )
    return replace(recipe, img_size=rows, drop_path=max(recipe.drop_path, 0.0))


def _train(args: argparse.Namespace, space: SearchSpace, recipe: Recipe, group: Processes) -> None:
    import torch

    from effv2_kernels.search.supernet import Supernet, supernet_file
    from effv2_kernels.search.supernet.sandwich import Sandwich
    from effv2_kernels.train import Classification, Trainer, accuracy
    from effv2_kernels.train import data as images

    data = images.open_data(
        args.data,
        dataset=args.dataset,
        channels=args.in_channels,
        classes=args.num_classes,
        hold_out=args.hold_out,
    )
    options = {"workers": args.workers, "channels": args.in_channels}
    loader = images.train_loader(data, recipe, group, **options)
    held_out = images.evaluation_loader(data.held_out, recipe, group, **options)
    teacher = recipes.teacher_of(args, recipe, data.classes, group)
    about = {
        "space": space.to_json(),
        "random_subnets": args.random_subnets,
        "layer_scale": args.layer_scale,
        "classes": data.classes,
        "dataset": args.dataset or "folders",
        "images": len(data.train),
        "hold_out": args.hold_out,
        **recipes.taught_by(teacher),
    }
    if args.hold_out:
        # Which are held out follows from the names and the order of all of them.
        about["trained_on"] = data.train.digest()

    def evaluate(model: nn.Module) -> dict[str, float]:
        """Of the largest network, whose weights all others share, and of the smallest."""
        assert isinstance(model, Supernet)
        with model.selecting(space.largest()):
            found = accuracy(model, held_out, data.classes, group)
        with model.selecting(space.smallest()):
            smallest = accuracy(model, held_out, data.classes, group)
        return {**found, **{f"smallest_{name}": value for name, value in smallest.items()}}

    def trainer(kept: Run) -> Trainer:
        torch.manual_seed(recipe.seed)
        supernet = _supernet(args, space, recipe, data.classes)
        if teacher is not None:
            supernet.set_distilled_training()
        rule = Sandwich(
            Classification(recipe).criterion,
            teacher=teacher,
            alpha=recipe.alpha,
            random_subnets=args.random_subnets,
            seed=recipe.seed,
        )
        mix = images.mixup(recipe, data.classes)
        return Trainer(supernet, rule, recipe, loader, evaluate, kept, group, mix=mix)

    what = f"supernet of 10^{space.log10_subnets():.1f} networks"
    kept = recipes.fit(args, recipe, about, group, data, what, trainer, newer=["trained_on"])
    if not group.writes:
        return
    best = _supernet(args, space, recipe, data.classes)
    weights, which = _weights(kept)
    best.load_state_dict(weights)
    path = Path(args.output) / FILE
    told = {"hold_out": args.hold_out, "crop": recipe.crop, "interpolation": recipe.interpolation}
    if args.hold_out:
        told["trained_on"] = about["trained_on"]
    supernet_file.save(best, path, images=told)
    print(f"{which}; wrote {path}")


def _supernet(args: argparse.Namespace, space: SearchSpace, recipe: Recipe, classes: int) -> Supernet:
    from effv2_kernels.search.supernet import Supernet

    return Supernet(
        space,
        num_classes=classes,
        distillation=bool(recipe.teacher),
        layer_scale_init=args.layer_scale,
        drop_path_rate=recipe.drop_path,
    )


def _weights(kept: Run) -> tuple[Mapping[str, Tensor], str]:
    """The best ones of a run, and what to say of them; where someone took them away, the last ones."""
    from effv2_kernels.checkpoint import files
    from effv2_kernels.train import state

    if kept.best.exists():
        return files.read(kept.best), f"best top-1 of the largest network {kept.best_value:.2%}"
    content = state.load(kept.checkpoint)
    weights = content.get("state_dict_ema", content["state_dict"])
    return weights, f"'{kept.best}' is gone, so these weights are those of the last epoch"
