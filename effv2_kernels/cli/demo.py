"""``demo``: read handwritten digits and a photograph, plain and optimised."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from effv2_kernels import photo
from effv2_kernels.cli import labels, models
from effv2_kernels.cli.verify import Difference
from effv2_kernels.errors import UnavailableError

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

PHOTOGRAPH = "china.jpg"  # one of the two that scikit-learn carries
SHOWN_DIGITS = 6


def add_arguments(parser: argparse.ArgumentParser) -> None:
    models.add_arguments(parser)
    parser.add_argument("--image", metavar="FILE", help=f"a photograph; default: scikit-learn's {PHOTOGRAPH}")
    parser.add_argument(
        "--seconds", type=float, default=3.0, metavar="S", help="of timing for each part; default: 3"
    )


def run(args: argparse.Namespace) -> int:
    try:
        import sklearn  # noqa: F401
        from rich.console import Console
    except ImportError as error:
        raise UnavailableError(
            f"the demo needs {error.name}: pip install 'effv2_kernels[demo]', or use make demo."
        ) from error
    console = Console(highlight=False)
    read_digits(console, args)
    read_photograph(console, args)
    return 0


def read_digits(console: Console, args: argparse.Namespace) -> None:
    """Accuracy of the shipped small network on images that it was not trained on, and the time of both."""
    import torch

    import effv2_kernels
    from effv2_kernels import data

    model = data.load_digits_network()
    fast = effv2_kernels.optimize(model)
    _, (images, classes) = data.digits_split()
    with torch.inference_mode():
        eager_classes, fast_classes = model(images).argmax(1), fast(images).argmax(1)
        seconds = medians({"eager": lambda: model(images), "optimised": lambda: fast(images)}, args.seconds)
    console.rule("[bold]1. Handwritten digits")
    parameters = sum(p.numel() for p in model.parameters())
    console.print(
        f"A small EfficientFormerV2 of {parameters:,} parameters, and {len(images)} digits of scikit-learn's "
        f"that it was not trained on. The first {SHOWN_DIGITS}, and what the optimised network reads:\n"
    )
    console.print(draw(images[:SHOWN_DIGITS], fast_classes[:SHOWN_DIGITS].tolist()))
    table = _table("", "accuracy", "median time", "per digit")
    for name, found in (("eager", eager_classes), ("optimised", fast_classes)):
        table.add_row(
            LABELS[name],
            f"{(found == classes).double().mean().item():.2%}",
            _milliseconds(seconds[name]),
            f"{seconds[name] / len(images) * 1e6:.1f} µs",
        )
    console.print(table)
    same = int((eager_classes == fast_classes).sum())
    console.print(
        f"The same class for {same} of {len(images)} digits, "
        f"[bold green]{seconds['eager'] / seconds['optimised']:.1f} times as fast[/] as PyTorch eager.\n"
    )


def read_photograph(console: Console, args: argparse.Namespace) -> None:
    """The top classes of a photograph, the error against the float64 reference, and the time of both."""
    import copy

    import torch

    import effv2_kernels

    image, name = _photograph(args)
    model = models.build(args)
    fast = effv2_kernels.optimize(model)
    with torch.inference_mode():
        outputs = {"eager": model(image), "optimised": fast(image)}
        expected = copy.deepcopy(model).double()(image.double())
        seconds = medians({"eager": lambda: model(image), "optimised": lambda: fast(image)}, args.seconds)
    console.rule("[bold]2. A photograph")
    console.print(f"{models.called(args)} on {name}, {args.img_size[0]}x{args.img_size[1]}.")
    if models.is_random(args):
        console.print(
            "[yellow]The weights are random, so the classes mean nothing[/] and only error and time count. "
            "With trained weights: make demo CHECKPOINT=path (the official .pth, or timm's .safetensors)."
        )
    console.print(_top_classes(outputs))
    table = _table("", "error against float64", "median time")
    for key, output in outputs.items():
        table.add_row(
            LABELS[key], f"{Difference.of(output, expected).relative_l2:.1e}", _milliseconds(seconds[key])
        )
    console.print(table)
    console.print(
        f"[bold green]{seconds['eager'] / seconds['optimised']:.1f} times as fast[/] as PyTorch eager, "
        f"with {torch.get_num_threads()} threads."
    )


LABELS = {"eager": "PyTorch eager", "optimised": "effv2_kernels"}


def medians(runs: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """The median seconds of one call of each, timed in turns."""
    from effv2_kernels.benchmarking.interleave import interleave

    turns = interleave(runs, seconds).calls
    return {name: statistics.median(call for turn in turns[name] for call in turn) for name in runs}


def draw(images: Tensor, classes: list[int]) -> str:
    """Small pictures side by side in half blocks, two rows of an 8x8 grid to a line, and a class below each.

    images: (N, channels, H, W), any range of values.
    """
    from torch.nn.functional import adaptive_avg_pool2d

    small = adaptive_avg_pool2d(images.mean(1, keepdim=True), 8)[:, 0]
    low, high = small.amin((1, 2), keepdim=True), small.amax((1, 2), keepdim=True)
    ink = (small - low) > 0.4 * (high - low)
    blocks = {(False, False): " ", (True, False): "▀", (False, True): "▄", (True, True): "█"}
    lines = [
        "   ".join(
            "".join(
                blocks[bool(upper), bool(lower)] for upper, lower in zip(digit[r], digit[r + 1], strict=True)
            )
            for digit in ink
        )
        for r in range(0, 8, 2)
    ]
    lines.append("   ".join(f"{number:^8}" for number in classes))
    return "\n".join(f"   {line}" for line in lines) + "\n"


def _photograph(args: argparse.Namespace) -> tuple[Tensor, str]:
    if args.image is not None:
        return photo.read(args.image, args.img_size, args.in_channels), args.image
    from PIL import Image
    from sklearn.datasets import load_sample_image

    image = Image.fromarray(load_sample_image(PHOTOGRAPH))
    return photo.prepare(image, args.img_size, args.in_channels), PHOTOGRAPH


def _top_classes(outputs: dict[str, Tensor]) -> Any:
    names = labels.choose(None, outputs["eager"].shape[1])
    if names is not None:
        names = [name.split(",")[0] for name in names]
    probabilities = {key: output[0].softmax(0) for key, output in outputs.items()}
    table = _table("class", *(LABELS[key] for key in outputs))
    for index in probabilities["eager"].topk(min(5, len(probabilities["eager"]))).indices.tolist():
        table.add_row(
            labels.describe(names, index), *(f"{p[index].item():.4%}" for p in probabilities.values())
        )
    return table


def _table(first: str, *others: str) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms"
