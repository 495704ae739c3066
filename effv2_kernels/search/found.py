"""The network that was found, as files: its sizes, its weights, and what to do with them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from effv2_kernels.errors import SearchError
from effv2_kernels.families.efficientformer_v2.architecture import FILE as ARCHITECTURE
from effv2_kernels.families.efficientformer_v2.model import EfficientFormerV2
from effv2_kernels.replacing import replacing
from effv2_kernels.search.search import Found
from effv2_kernels.train.recipe import PRESETS

WEIGHTS, NEXT = "weights.safetensors", "NEXT.txt"
_RECIPE = "finetune"


@dataclass(frozen=True)
class Source:
    """The images of a search as ``train`` is told them. data, dataset: where they are, as of its options.

    crop, interpolation: how the supernet saw them. count: how many there are to train on.
    """

    data: str
    dataset: str
    crop: float
    interpolation: str
    count: int


def write(
    folder: Path, model: EfficientFormerV2, found: Found, summary: str, source: Source | None = None
) -> list[Path]:
    """Write architecture.json, weights.safetensors and NEXT.txt, and say where they are.

    model: of the architecture that was found, such as ``SupernetEvaluator.calibrated`` makes. summary: what
    was found, in words, the first lines of NEXT.txt, which then says how to go on, with the images of
    ``source``; None where ``train`` does not take those of the search.

    Raises SearchError where a file cannot be written, or where the model is of another architecture.
    """
    if model.architecture.canonical() != found.best.architecture:
        raise SearchError(
            f"the search found {found.best.architecture}, but the weights are of {model.architecture}: give "
            f"those of the subnet that was found."
        )
    paths = write_network(folder, model)
    paths.append(folder / NEXT)
    with _written(folder):
        paths[-1].write_text(f"{summary}\n\n{_how_to_go_on(folder, model, source)}", encoding="utf-8")
    return paths


def write_network(folder: Path, model: EfficientFormerV2) -> list[Path]:
    """Write architecture.json and weights.safetensors, and say where they are.

    The weights are those of the model that ``create_model(architecture=..., checkpoint=...)`` makes. Raises
    SearchError where they cannot be written.
    """
    from safetensors.torch import save_file

    paths = [folder / ARCHITECTURE, folder / WEIGHTS]
    with _written(folder):
        with replacing(paths[1]) as part:
            save_file(_weights(model), part)
        paths[0].write_text(model.architecture.to_json(), encoding="utf-8")
    return paths


@contextmanager
def _written(folder: Path) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        raise SearchError(f"a network cannot be written to '{folder}': {error}.") from error


def _weights(model: EfficientFormerV2) -> dict[str, Tensor]:
    """By the names that ``create_model`` knows.

    Layer scales that the model does not have are ones. A classifier for distillation that it does not have is
    the one that it has: both together are as it is, and fine-tuning may tell them apart.
    """
    given = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    with torch.device("meta"):
        whole = EfficientFormerV2(
            model.architecture,
            img_size=model.img_size,
            in_channels=model.in_channels,
            num_classes=model.num_classes,
        ).state_dict()
    dtype = next(t.dtype for t in given.values() if t.is_floating_point())
    ones = {name: torch.ones(t.shape, dtype=dtype) for name, t in whole.items() if name.endswith("gamma")}
    second = {name.replace("head.", "head_dist."): t for name, t in given.items() if name.startswith("head.")}
    return ones | {name: t.clone() for name, t in second.items()} | given


def _how_to_go_on(folder: Path, model: EfficientFormerV2, source: Source | None = None) -> str:
    files = f"architecture={str(folder / ARCHITECTURE)!r}, checkpoint={str(folder / WEIGHTS)!r}"
    sizes = f"num_classes={model.num_classes}, img_size={model.img_size}, in_channels={model.in_channels}"
    # Published teachers are for ImageNet's classes and colours: training refuses them for anything else.
    published = (model.in_channels, model.num_classes) == (3, 1000)
    words = ["python", "-m", "effv2_kernels", *_fine_tuning(folder, model, source)]
    words += ["--teacher", "regnety_160.deit_in1k"] if published else []
    words += ["--output", str(folder / "fine-tuned")]
    return f"""\
Fine-tune it. A teacher is any model of timm, or an architecture.json, that tells the same
{model.num_classes} classes apart on images of {model.in_channels} channels: --teacher NAME
--teacher-checkpoint FILE.

{_command(words)}

Use it as it is, or with the weights that fine-tuning ends with:

  import effv2_kernels
  model = effv2_kernels.create_model(
      {files},
      {sizes},
  )
  fast = effv2_kernels.optimize(model)
  effv2_kernels.save(fast, "found.effv2")  # what effv2_kernels.load and effv2-run take
"""


def _fine_tuning(folder: Path, model: EfficientFormerV2, source: Source | None) -> list[str]:
    """The command and its options, so that it runs as it stands where the images are known."""
    words = ["train", "--data", source.data if source else "DATA"]
    if source is not None and source.dataset:
        words += ["--dataset", source.dataset, "--num-classes", str(model.num_classes)]
    words += ["--architecture", str(folder / ARCHITECTURE), "--checkpoint", str(folder / WEIGHTS)]
    words += ["--recipe", _RECIPE, "--img-size", str(model.img_size[0])]
    words += ["--in-channels", str(model.in_channels)]
    if source is not None:
        recipe = PRESETS[_RECIPE]
        for name in ("crop", "interpolation"):
            if getattr(source, name) != getattr(recipe, name):
                words += ["--set", f"{name}={getattr(source, name)}"]
        if source.count < recipe.batch:
            words += ["--batch", str(_batch(source.count))]
    return words


def _batch(count: int) -> int:
    """Of few images: a power of two, as mixing needs pairs, and some steps an epoch."""
    return 1 << max(1, (count // 4).bit_length() - 1)


def _command(words: list[str]) -> str:
    """Quoted for a shell, in lines that it takes as one."""
    lines = [""]
    for word in map(shlex.quote, words):
        # An option stays beside its value.
        if lines[-1] and len(lines[-1]) + len(word) > 80 and word.startswith("--"):
            lines.append("")
        lines[-1] += f" {word}" if lines[-1] else word
    return "  " + " \\\n    ".join(lines)
