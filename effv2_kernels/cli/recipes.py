"""What the commands that train share: the options of a recipe, its teacher, and what they say as they go."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effv2_kernels.errors import InputError
from effv2_kernels.progress import progress_bar
from effv2_kernels.train.recipe import PRESETS, Recipe, sources

if TYPE_CHECKING:
    from effv2_kernels.train import Data, Processes, Teacher, Trainer
    from effv2_kernels.train.run import Run

# Entries of a recipe that have an option of their own.
SHORT = ("epochs", "batch", "img_size", "lr", "seed", "teacher")


def add_arguments(parser: argparse.ArgumentParser, *, several: str) -> None:
    """--output, --resume, --recipe, --set, the short ones, --teacher-checkpoint and --device.

    several: the command as it is started on several GPUs.
    """
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _explained(several)
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
    parser.add_argument(
        "--device", default="auto", metavar="NAME", help="auto (default: a GPU if there is one), cpu, cuda"
    )


def recipe_of(args: argparse.Namespace) -> Recipe:
    """Raises UnknownNameError and InputError for options that make no recipe."""
    settings = {name: getattr(args, name) for name in SHORT if getattr(args, name) is not None}
    for text in args.set:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--set takes NAME=VALUE, but got {text!r}.")
        settings[name.strip()] = value.strip()
    return Recipe.named(args.recipe).changed(settings)


def teacher_of(args: argparse.Namespace, recipe: Recipe, classes: int, group: Processes) -> Teacher | None:
    """The recipe's, on the device; None where it names none."""
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


def taught_by(teacher: Teacher | None) -> dict[str, str]:
    """What a resumed run must share of its teacher: its weights, whatever their file is called."""
    return {} if teacher is None else {"teacher_weights": teacher.identity()}


def fit(
    args: argparse.Namespace,
    recipe: Recipe,
    about: Mapping[str, Any],
    group: Processes,
    data: Data,
    what: str,
    trainer: Callable[[Run], Trainer],
    *,
    newer: Collection[str] = (),
) -> Run:
    """Begin the run in --output or go on with it, to its end, and say so as it goes.

    what: is trained, in words. trainer: makes one, once the folder was found to be this run's. about,
    newer: as ``Run`` takes them.
    """
    from effv2_kernels.train.data import policy
    from effv2_kernels.train.run import Run

    run = Run(
        Path(args.output),
        recipe,
        about,
        conditions={"processes": group.count, "workers": args.workers, "device": group.device.type},
        resume=args.resume,
        writes=group.writes,
        newer=newer,
    )
    with closing(run):
        made = trainer(run)
        if group.writes:
            _announce(what, run, data, made.epochs)
            if recipe.auto_augment and policy(recipe, args.in_channels) is None:
                print("auto_augment is not used: its policies are of coloured pictures")
            with progress_bar() as progress:
                made.fit(progress, _report)
        else:
            made.fit()
    return run


def _announce(what: str, kept: Run, data: Data, epochs: int) -> None:
    """Say what begins, or goes on."""
    begun = f"going on behind epoch {kept.epoch}" if kept.epoch else "beginning"
    print(
        f"{what}, {len(data.train)} images of {data.classes} classes, {len(data.held_out)} to "
        f"evaluate on; {begun}, {epochs} epochs in all"
    )
    if kept.changed:
        print(f"not as it was begun, so other bits are possible: {'; '.join(kept.changed)}")
    if kept.unnoted:
        print(f"begun by a version that did not note {', '.join(kept.unnoted)}: so this is not compared")


def _report(row: Mapping[str, float]) -> None:
    """A line for an epoch."""
    shown = (f"{name} {value:.4g}" for name, value in row.items() if name != "epoch")
    print(f"epoch {row['epoch']:.0f}: {', '.join(shown)}", flush=True)


def _explained(several: str) -> str:
    """What --help says of the recipes: every entry, its value in each preset, and its source."""
    lines = ["recipes, entry by entry, with their sources (docs/training.md says what these are):", ""]
    for name, (value, source) in sources().items():
        own = [
            f"{preset} {other!r}, chosen here" if preset == "finetune" else f"{preset} {other!r}"
            for preset, entry in PRESETS.items()
            if (other := getattr(entry, name)) != value
        ]
        lines.append("; ".join([f"  {name:18} {value!r}  ({source})", *own]))
    lines += ["", f"on several GPUs: torchrun --nproc_per_node 8 -m effv2_kernels {several} ..."]
    # argparse takes % for its own.
    return "\n".join(lines).replace("%", "%%")
