"""The network that was found, as files: its sizes, its weights, and what to do with them."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from effv2_kernels.errors import SearchError
from effv2_kernels.families.efficientformer_v2.architecture import FILE as ARCHITECTURE
from effv2_kernels.families.efficientformer_v2.model import EfficientFormerV2
from effv2_kernels.search.search import Found

WEIGHTS, NEXT = "weights.safetensors", "NEXT.txt"


def write(folder: Path, model: EfficientFormerV2, found: Found, summary: str) -> list[Path]:
    """Write architecture.json, weights.safetensors and NEXT.txt, and say where they are.

    model: of the architecture that was found, such as ``SupernetEvaluator.calibrated`` makes. The weights
    are those of the model that ``create_model(architecture=..., checkpoint=...)`` makes. summary: what was
    found, in words, the first lines of NEXT.txt, which then says how to go on.

    Raises SearchError where a file cannot be written, or where the model is of another architecture.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    if model.architecture.canonical() != found.best.architecture:
        raise SearchError(
            f"the search found {found.best.architecture}, but the weights are of {model.architecture}: give "
            f"those of the subnet that was found."
        )
    paths = [folder / ARCHITECTURE, folder / WEIGHTS, folder / NEXT]
    part = folder / f".{WEIGHTS}.part"
    try:
        save_file(_weights(model), part)
        os.replace(part, paths[1])
        paths[0].write_text(found.best.architecture.to_json(), encoding="utf-8")
        paths[2].write_text(f"{summary}\n\n{_how_to_go_on(folder, model)}", encoding="utf-8")
    except (OSError, SafetensorError) as error:
        part.unlink(missing_ok=True)
        raise SearchError(f"what was found cannot be written to '{folder}': {error}.") from error
    return paths


def _weights(model: EfficientFormerV2) -> dict[str, Tensor]:
    """By the names that ``create_model`` knows; layer scales that the model does not have are ones."""
    given = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    with torch.device("meta"):
        whole = EfficientFormerV2(
            model.architecture,
            img_size=model.img_size,
            in_channels=model.in_channels,
            num_classes=model.num_classes,
            distillation=model.distillation,
        ).state_dict()
    dtype = next(t.dtype for t in given.values() if t.is_floating_point())
    ones = {name: torch.ones(t.shape, dtype=dtype) for name, t in whole.items() if name.endswith("gamma")}
    return ones | given


def _how_to_go_on(folder: Path, model: EfficientFormerV2) -> str:
    files = f'architecture="{folder / ARCHITECTURE}", checkpoint="{folder / WEIGHTS}"'
    sizes = f"num_classes={model.num_classes}, img_size={model.img_size}, in_channels={model.in_channels}"
    alone = "" if model.distillation else ", distillation=False"
    return f"""\
Fine-tune it, with distillation from a teacher (any model of timm) where there is one:

  python -m effv2_kernels train --data DATA --architecture {folder / ARCHITECTURE} \\
    --checkpoint {folder / WEIGHTS} --recipe finetune --img-size {model.img_size[0]} \\
    --in-channels {model.in_channels} --teacher regnety_160 --output {folder / "fine-tuned"}

Use it as it is, or with the weights that fine-tuning ends with:

  import effv2_kernels
  model = effv2_kernels.create_model(
      {files},
      {sizes}{alone},
  )
  fast = effv2_kernels.optimize(model)
  effv2_kernels.save(fast, "found.effv2")  # what effv2_kernels.load and effv2-run take
"""
