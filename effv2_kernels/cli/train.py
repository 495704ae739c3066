"""``train``: train a model; see docs/training.md."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effv2_kernels.cli import datasets
from effv2_kernels.errors import CheckpointError, InputError, ModelError
from effv2_kernels.progress import progress_bar
from effv2_kernels.train import packages
from effv2_kernels.train.recipe import PRESETS, Recipe, sources

if TYPE_CHECKING:
    from torch import nn

    from effv2_kernels.train import Processes, Teacher

# Entries of a recipe that have an option of their own.
SHORT = ("epochs", "batch", "img_size", "lr", "seed", "teacher")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _explained()
    datasets.add_arguments(parser)
    parser.add_argument(
        "--model", default="efficientformerv2_s0", metavar="NAME", help="default: efficientformerv2_s0"
    )
    parser.add_argument("--output", required=True, metavar="RUN", help="the folder that the run is kept in")
    parser.add_argument(
        "--resume", action="store_true", help="go on with the run in RUN where it was killed; else begin it"
    )
    parser.add_argument(
        "--recipe", default="paper-300", metavar="NAME", help=f"{', '.join(PRESETS)}; default: paper-300"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="another value of the recipe, see below; several times for several",
    )
    for name in SHORT:
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, metavar="VALUE", help=f"the same as --set {name}=VALUE")
    parser.add_argument(
        "--teacher-checkpoint",
        metavar="FILE",
        help="weights of the teacher; default: those that are published, which needs the network",
    )
    parser.add_argument("--checkpoint", metavar="FILE", help="weights to begin with; default: random ones")
    parser.add_argument(
        "--checkpoint-classes",
        type=int,
        metavar="N",
        help="classes of --checkpoint, where the data has others: its classifiers are made anew",
    )
    parser.add_argument(
        "--device", default="auto", metavar="NAME", help="auto (default: a GPU if there is one), cpu, cuda"
    )


def run(args: argparse.Namespace) -> int:
    packages.require()
    from effv2_kernels.train import processes

    recipe = _recipe(args)
    with processes(args.device) as group:
        _train(args, recipe, group)
    return 0


def _train(args: argparse.Namespace, recipe: Recipe, group: Processes) -> None:
    from effv2_kernels.train import Classification, Trainer, accuracy
    from effv2_kernels.train import data as images
    from effv2_kernels.train.run import Run

    data = images.open_data(
        args.data, dataset=args.dataset, channels=args.in_channels, classes=args.num_classes
    )
    options = {"workers": args.workers, "channels": args.in_channels}
    loader = images.train_loader(data, recipe, group, **options)
    validation = images.validation_loader(data, recipe, group, **options)
    about = {
        "model": args.model,
        "classes": data.classes,
        "channels": args.in_channels,
        "dataset": args.dataset or "folders",
        "images": len(data.train),
        "checkpoint": args.checkpoint,
        "teacher_checkpoint": args.teacher_checkpoint,
    }
    conditions = {"processes": group.count, "workers": args.workers, "device": group.device.type}
    with ExitStack() as stack:
        kept = Run(
            Path(args.output), recipe, about, conditions=conditions, resume=args.resume, writes=group.writes
        )
        stack.callback(kept.close)
        teacher = _teacher(args, recipe, data.classes, group)
        model = _model(args, recipe, data.classes, teacher)
        trainer = Trainer(
            model,
            Classification(recipe, teacher),
            recipe,
            loader,
            lambda candidate: accuracy(candidate, validation, data.classes, group),
            kept,
            group,
            mix=images.mixup(recipe, data.classes),
        )
        if not group.writes:
            trainer.fit()
            return
        _announce(args, kept, data, trainer.epochs)
        trainer.fit(stack.enter_context(progress_bar()), _report)
    best = f"--checkpoint {kept.best}" if kept.best.exists() else f"--checkpoint {kept.checkpoint}"
    print(
        f"best top-1 {kept.best_value:.2%}. To see it through the optimised model as well:\n"
        f"  python -m effv2_kernels evaluate --data {args.data} --model {args.model} "
        f"--img-size {recipe.img_size} {best}"
    )


def _announce(args: argparse.Namespace, kept: Any, data: Any, epochs: int) -> None:
    begun = f"going on behind epoch {kept.epoch}" if kept.epoch else "beginning"
    print(
        f"{args.model}, {len(data.train)} images of {data.classes} classes, {len(data.validation)} to "
        f"evaluate on; {begun}, {epochs} epochs in all"
    )
    if kept.changed:
        print(f"not as it was begun, so other bits are possible: {'; '.join(kept.changed)}")


def _report(row: Mapping[str, float]) -> None:
    shown = (f"{name} {value:.4g}" for name, value in row.items() if name != "epoch")
    print(f"epoch {row['epoch']:.0f}: {', '.join(shown)}", flush=True)


def _recipe(args: argparse.Namespace) -> Recipe:
    settings = {name: getattr(args, name) for name in SHORT if getattr(args, name) is not None}
    for text in args.set:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--set takes NAME=VALUE, but got {text!r}.")
        settings[name.strip()] = value.strip()
    recipe = Recipe.named(args.recipe).changed(settings)
    return replace(recipe, drop_path=recipe.drop_path_of(args.model))


def _teacher(args: argparse.Namespace, recipe: Recipe, classes: int, group: Processes) -> Teacher | None:
    from effv2_kernels.train import Teacher

    if not recipe.teacher:
        if args.teacher_checkpoint:
            raise InputError("--teacher-checkpoint is of a --teacher: give the name of its model, too.")
        return None
    return Teacher.named(
        recipe.teacher,
        checkpoint=args.teacher_checkpoint,
        classes=classes,
        img_size=recipe.img_size,
        channels=args.in_channels,
    ).to(group.device)


def _model(args: argparse.Namespace, recipe: Recipe, classes: int, teacher: Teacher | None) -> nn.Module:
    import torch

    from effv2_kernels import create_model

    torch.manual_seed(recipe.seed)
    try:
        model = create_model(
            args.model,
            checkpoint=args.checkpoint,
            num_classes=args.checkpoint_classes or classes,
            img_size=recipe.img_size,
            in_channels=args.in_channels,
            drop_path_rate=recipe.drop_path,
        )
    except CheckpointError as error:
        if "pass num_classes=" not in str(error) or args.checkpoint_classes:
            raise
        given = str(error).rpartition("pass num_classes=")[2].rstrip(".")
        raise CheckpointError(
            f"'{args.checkpoint}' has {given} classes, and the data has {classes}: give --checkpoint-classes "
            f"{given}, and its classifiers are made anew."
        ) from error
    if args.checkpoint_classes and args.checkpoint_classes != classes:
        reset = getattr(model, "reset_classifier", None)
        if reset is None:
            raise ModelError(f"{args.model} cannot get new classifiers: leave out --checkpoint-classes.")
        reset(classes)
    distil: Callable[[], None] | None = getattr(model, "set_distilled_training", None)
    if teacher is not None and distil is not None:
        distil()
    return model


def _explained() -> str:
    """What --help says of the recipes: every entry, its value in each preset, and its source."""
    lines = ["recipes, entry by entry, with their sources (docs/training.md says what these are):", ""]
    for name, (value, source) in sources().items():
        own = [
            f"{preset} {other!r}, chosen here" if preset == "finetune" else f"{preset} {other!r}"
            for preset, entry in PRESETS.items()
            if (other := getattr(entry, name)) != value
        ]
        lines.append("; ".join([f"  {name:18} {value!r}  ({source})", *own]))
    lines += ["", "on several GPUs: torchrun --nproc_per_node 8 -m effv2_kernels train ..."]
    # argparse takes % for its own.
    return "\n".join(lines).replace("%", "%%")
