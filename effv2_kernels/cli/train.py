"""``train``: train a model; see docs/training.md."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from effv2_kernels.cli import datasets, models, recipes
from effv2_kernels.errors import InputError, ModelError
from effv2_kernels.train import packages
from effv2_kernels.train.recipe import Recipe

if TYPE_CHECKING:
    from torch import nn

    from effv2_kernels.train import Processes, Teacher
    from effv2_kernels.train.run import Run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    datasets.add_arguments(parser)
    recipes.add_arguments(parser, several="train")
    models.add_network_arguments(parser)
    parser.add_argument("--checkpoint", metavar="FILE", help="weights to begin with; default: random ones")
    parser.add_argument(
        "--checkpoint-classes",
        type=int,
        metavar="N",
        help="classes of --checkpoint, where the data has others: its classifiers are made anew",
    )


def run(args: argparse.Namespace) -> int:
    packages.require()
    from effv2_kernels.train import processes

    recipe = _recipe(args)
    with processes(args.device) as group:
        _train(args, recipe, group)
    return 0


def _recipe(args: argparse.Namespace) -> Recipe:
    if args.checkpoint_classes is not None and args.checkpoint_classes < 1:
        raise InputError(
            f"--checkpoint-classes is how many --checkpoint has, and not {args.checkpoint_classes}."
        )
    recipe = recipes.recipe_of(args)
    # A network that has no name has no published rate.
    return replace(recipe, drop_path=recipe.drop_path_of("" if args.architecture else args.model))


def _train(args: argparse.Namespace, recipe: Recipe, group: Processes) -> None:
    from effv2_kernels.train import Classification, Trainer, accuracy
    from effv2_kernels.train import data as images

    data = images.open_data(
        args.data, dataset=args.dataset, channels=args.in_channels, classes=args.num_classes
    )
    options = {"workers": args.workers, "channels": args.in_channels}
    loader = images.train_loader(data, recipe, group, **options)
    validation = images.validation_loader(data, recipe, group, **options)
    teacher = recipes.teacher_of(args, recipe, data.classes, group)
    about = {
        **_network(args),
        "classes": data.classes,
        "channels": args.in_channels,
        "dataset": args.dataset or "folders",
        "images": len(data.train),
        "checkpoint": args.checkpoint,
        **recipes.taught_by(teacher),
    }

    def trainer(kept: Run) -> Trainer:
        return Trainer(
            _model(args, recipe, data.classes, teacher),
            Classification(recipe, teacher),
            recipe,
            loader,
            lambda candidate: accuracy(candidate, validation, data.classes, group),
            kept,
            group,
            mix=images.mixup(recipe, data.classes),
        )

    kept = recipes.fit(args, recipe, about, group, data, models.called(args), trainer)
    if not group.writes:
        return
    given = {
        "--data": args.data,
        "--dataset": args.dataset,
        "--num-classes": args.num_classes,
        "--in-channels": args.in_channels,
        "--architecture" if args.architecture else "--model": models.called(args),
        "--img-size": recipe.img_size,
        "--crop": recipe.crop,
        "--interpolation": recipe.interpolation,
        "--checkpoint": kept.best if kept.best.exists() else kept.checkpoint,
    }
    words = [word for option, value in given.items() if value for word in (option, str(value))]
    print(
        f"best top-1 {kept.best_value:.2%}. To see it through the optimised model as well:\n"
        f"  python -m effv2_kernels evaluate {shlex.join(words)}"
    )


def _network(args: argparse.Namespace) -> dict[str, Any]:
    """What a resumed run must share: of a file its contents, whatever it is called."""
    if not args.architecture:
        return {"model": args.model}
    from effv2_kernels.families import sizes

    return {"architecture": sizes(args.architecture)}


def _of_other_classes(args: argparse.Namespace, count: int, classes: int) -> str:
    if count == classes:  # and only --checkpoint-classes said otherwise
        return f"it has {count} classes, as the data has: leave out --checkpoint-classes"
    asked = (
        f"the data has {classes}"
        if args.checkpoint_classes is None
        else f"--checkpoint-classes is {args.checkpoint_classes}"
    )
    return (
        f"it has {count} classes, and {asked}: give --checkpoint-classes {count}, and its classifiers are "
        f"made anew"
    )


def _model(args: argparse.Namespace, recipe: Recipe, classes: int, teacher: Teacher | None) -> nn.Module:
    import torch

    from effv2_kernels import create_model

    torch.manual_seed(recipe.seed)
    with models.by_options(args, lambda count: _of_other_classes(args, count, classes)):
        model = create_model(
            **models.network(args),
            checkpoint=args.checkpoint,
            num_classes=classes if args.checkpoint_classes is None else args.checkpoint_classes,
            img_size=recipe.img_size,
            in_channels=args.in_channels,
            drop_path_rate=recipe.drop_path,
        )
    if args.checkpoint_classes and args.checkpoint_classes != classes:
        reset = getattr(model, "reset_classifier", None)
        if reset is None:
            raise ModelError(
                f"{models.called(args)} cannot get new classifiers: leave out --checkpoint-classes."
            )
        reset(classes)
    distil: Callable[[], None] | None = getattr(model, "set_distilled_training", None)
    if teacher is not None and distil is not None:
        distil()
    return model
