"""The options by which every command is told its model, and the model that they describe."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effv2_kernels.errors import CheckpointError, InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

SAVED = ".effv2"


def add_arguments(parser: argparse.ArgumentParser, *, saved: bool = False) -> None:
    """What describes a model, its weights and its images.

    saved: the command can run an optimised network that `convert` wrote, given as the checkpoint.
    """
    add_network_arguments(parser)
    add_weight_arguments(parser, saved=saved)
    parser.add_argument(
        "--num-classes", action=_Noted, type=int, default=1000, metavar="N", help="default: 1000"
    )
    parser.add_argument(
        "--in-channels", action=_Noted, type=int, default=3, metavar="N", help="of images; default: 3"
    )
    parser.add_argument(
        "--img-size",
        action=_Noted,
        type=image_size,
        default=(224, 224),
        metavar="SIZE",
        help="224 (default) or ROWSxCOLUMNS" + ("; of a saved network, by default its own" if saved else ""),
    )
    parser.add_argument("--seed", type=seed, default=0, help="of random weights and images; default: 0")


class _Noted(argparse.Action):
    """Stores a value, and in ``args.given`` that there was one, which may be the default's."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        setattr(namespace, self.dest, values)
        namespace.given = {*_given(namespace), self.dest}


def _given(args: argparse.Namespace) -> set[str]:
    """The options of ``add_arguments``, as attributes, that describe a network and were given."""
    found: set[str] = getattr(args, "given", set())
    return found


def add_network_arguments(parser: argparse.ArgumentParser) -> None:
    """--model or --architecture."""
    network = parser.add_mutually_exclusive_group()
    network.add_argument(
        "--model",
        action=_Noted,
        default="efficientformerv2_s0",
        metavar="NAME",
        help="efficientformerv2_s0 (default), _s1, _s2 or _l, mobilenetv2_100, _140, ...",
    )
    network.add_argument(
        "--architecture",
        action=_Noted,
        metavar="FILE",
        help="instead: an architecture.json, such as `search` writes",
    )


def network(args: argparse.Namespace) -> dict[str, Any]:
    """Which network the options name, as ``create_model`` takes it."""
    if args.architecture is not None:
        return {"architecture": args.architecture}
    return {"name": args.model}


def called(args: argparse.Namespace) -> str:
    """What the network is called where a command speaks of it."""
    return str(args.architecture or args.model)


def add_weight_arguments(parser: argparse.ArgumentParser, *, saved: bool = False) -> None:
    """--checkpoint or --pretrained, and --weights; saved: see ``add_arguments``."""
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="weights: .pth or .safetensors, with the official keys or timm's"
        + (f"; or a network that `convert` wrote, *{SAVED}" if saved else ""),
    )
    weights.add_argument(
        "--pretrained", action="store_true", help="fetch timm's published weights; needs the network"
    )
    parser.add_argument(
        "--weights",
        choices=("auto", "average", "raw"),
        default="auto",
        help="which of a checkpoint's weights: auto (default) is the average of them (EMA, SWA) where there "
        "is one, and says so",
    )


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """--isa and --threads."""
    parser.add_argument("--isa", metavar="NAME", help="instruction set; default: the best of this machine")
    parser.add_argument("--threads", type=int, metavar="N", help="default: torch.get_num_threads()")


def add_gpu_arguments(parser: argparse.ArgumentParser) -> None:
    """--device, --backend and --dtype."""
    parser.add_argument("--device", default="cpu", metavar="NAME", help="cpu (default), cuda or cuda:1")
    parser.add_argument(
        "--backend", default="auto", metavar="NAME", help="auto (default), cpu, triton or cuda"
    )
    parser.add_argument("--dtype", metavar="NAME", help="fp32, bf16 or fp16; default: that of the weights")


def image_size(text: str) -> tuple[int, int]:
    """ "224" or "160x224" as (rows, columns)."""
    parts = text.lower().split("x")
    try:
        sizes = [int(part) for part in parts]
    except ValueError:
        sizes = []
    if len(sizes) not in (1, 2) or min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"expected 224 or ROWSxCOLUMNS such as 160x224, but got {text!r}")
    return sizes[0], sizes[-1]


def seed(text: str) -> int:
    """A number that torch.manual_seed takes, which raises a RuntimeError or ValueError for others."""
    number = int(text)
    if not 0 <= number < 2**63:
        raise argparse.ArgumentTypeError(f"expected a number in 0 ... 2^63 - 1, but got {text!r}")
    return number


@contextmanager
def by_options(args: argparse.Namespace, classes: Callable[[int], str] | None = None) -> Iterator[None]:
    """Within it, weights that do not fit are refused by what a command takes, not by what Python does.

    classes: what to say where they are of so many other ones; None is to give --num-classes.
    """
    try:
        yield
    except CheckpointError as error:
        if not error.fits:
            raise
        (option, value), *_ = error.fits.items()
        said = classes(value) if classes and option == "num_classes" else _advice(args, option, value)
        given = f"'{args.checkpoint}'" if args.checkpoint else "the published weights"
        raise CheckpointError(f"{given}: {said}.", error.fits) from error


def create(
    args: argparse.Namespace, num_classes: int, advice: Callable[[int], str] | None = None
) -> nn.Module:
    """The model of the options, with so many classes. advice: as ``by_options`` has it for other ones."""
    from effv2_kernels import create_model

    with by_options(args, advice):
        return create_model(
            **network(args),
            checkpoint=args.checkpoint,
            pretrained=args.pretrained,
            weights=args.weights,
            num_classes=num_classes,
            img_size=args.img_size,
            in_channels=args.in_channels,
        )


def _advice(args: argparse.Namespace, option: str, value: Any) -> str:
    """What to say of weights that would fit with this option of ``create_model``."""
    if option == "name":
        place = " in place of --architecture" if args.architecture else ""
        return f"the weights are of another model: give --model {value}{place}"
    if option == "img_size":
        return (
            f"the attention biases are for images of {value - 15} to {value} pixels a side: give by "
            f"--img-size the size that they were trained at"
        )
    if option == "num_classes":
        return f"the weights tell {value} classes apart: give --num-classes {value}"
    if option == "in_channels":
        return f"the weights take images of {value} channels: give --in-channels {value}"
    if option == "distillation":
        return (
            "there is no second classifier, for distillation, which this command expects: load them in "
            "Python by effv2_kernels.create_model(..., distillation=False)"
        )
    return "there is no classifier in it, which this command expects: give weights that have one"


def is_random(args: argparse.Namespace) -> bool:
    """Whether the options name no weights."""
    return args.checkpoint is None and not args.pretrained


def is_saved(args: argparse.Namespace) -> bool:
    """Whether the checkpoint is an optimised network: by its contents, or by its name if it is not there."""
    if args.checkpoint is None:
        return False
    from effv2_kernels.checkpoint.files import is_saved_network

    file = Path(args.checkpoint)
    return is_saved_network(file) if file.is_file() else file.suffix == SAVED


@contextmanager
def _log_on_stderr() -> Iterator[None]:
    """Show what the reading of a checkpoint logs: which weights it took."""
    log = logging.getLogger("effv2_kernels.checkpoint")
    handler = logging.StreamHandler(sys.stderr)
    level, propagate = log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        log.propagate = propagate


def build(args: argparse.Namespace) -> nn.Module:
    """The model in plain PyTorch, in eval mode; its weights are random where the options name none."""
    import torch

    from effv2_kernels.shapes import randomise

    if is_saved(args):
        raise CheckpointError(
            f"{args.checkpoint} is an optimised network, and this command needs the model that it was made "
            f"of: give the .pth or .safetensors file."
        )
    torch.manual_seed(args.seed)
    with _log_on_stderr():
        model = create(args, args.num_classes)
    if is_random(args):
        randomise(model)
    return model


def build_optimised(args: argparse.Namespace) -> nn.Module:
    """The optimised model, made of the one that the options describe, or read from a saved file."""
    import effv2_kernels

    # Another command's --dtype is what it writes.
    names = ("isa", "threads", *(("backend", "dtype") if "backend" in args else ()))
    given: dict[str, Any] = {name: getattr(args, name, None) for name in names}
    options = {name: value for name, value in given.items() if value is not None}
    device = _device(args, options)
    if is_saved(args):
        if args.weights != "auto":
            raise CheckpointError(
                f"{args.checkpoint} is an optimised network, which holds one set of weights: leave out "
                f"--weights, or give the checkpoint that it was made of."
            )
        _check_nothing_else_is_described(args)
        return effv2_kernels.load(args.checkpoint, device=device, **options)
    return effv2_kernels.optimize(build(args).to(device), **options)


def _check_nothing_else_is_described(args: argparse.Namespace) -> None:
    """Raise CheckpointError where options describe a network, which a saved one does by itself."""
    names = [
        f"--{name.replace('_', '-')}"
        for name in ("model", "architecture", "num_classes", "in_channels")
        if name in _given(args)
    ]
    if names:
        raise CheckpointError(
            f"{args.checkpoint} is an optimised network, which says itself what it is: leave out "
            f"{' and '.join(names)}, or give the checkpoint that it was made of."
        )


def chosen_size(args: argparse.Namespace) -> tuple[int, int] | None:
    """(rows, columns) of images; None is a saved network's own size, where --img-size was not given."""
    size: tuple[int, int] = args.img_size
    return None if is_saved(args) and "img_size" not in _given(args) else size


def image_shape(args: argparse.Namespace, fast: nn.Module | None) -> tuple[int, tuple[int, int]]:
    """(channels, (rows, columns)) of images for a network of ``build_optimised``; None: as options say."""
    from effv2_kernels.explain import input_size
    from effv2_kernels.model import OptimizedModel

    if not is_saved(args) or not isinstance(fast, OptimizedModel):
        return args.in_channels, args.img_size
    return fast.engine.in_channels, input_size(fast, chosen_size(args)) or args.img_size


def _device(args: argparse.Namespace, options: dict[str, Any]) -> torch.device:
    """That of --device, which is asked whether it can run the options before anything is moved there."""
    from effv2_kernels import backends, devices

    device = devices.named(getattr(args, "device", "cpu"), "--device takes cpu, cuda or cuda:1")
    if device.type != "cpu":
        backends.choose(device=device, **options)
    return device


def random_images(args: argparse.Namespace, count: int, fast: nn.Module | None = None) -> Tensor:
    """(count, channels, rows, columns) float32, standard normal, the same for the same --seed.

    fast: the network of ``build_optimised`` that they are for; without it they are as the options say.
    """
    import torch

    if count < 1:
        raise InputError(f"at least one image is needed, but {count} were asked for.")
    generator = torch.Generator().manual_seed(args.seed)
    channels, size = image_shape(args, fast)
    return torch.randn(count, channels, *size, generator=generator)
