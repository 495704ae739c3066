"""Optimised models on disk: a safetensors file whose metadata describes the blocks. No pickle is read."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn

from effv2_kernels import structure
from effv2_kernels.backends import Settings
from effv2_kernels.checkpoint.files import SAVED_FORMAT
from effv2_kernels.errors import CheckpointError, ModelError, UnavailableError
from effv2_kernels.model import OptimizedModel

_VERSION = "1"


def save(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write what ``optimize`` returned to a file that ``load`` reads on any machine.

    Tensors are named as in the model's state dict and described in ``effv2_kernels.blocks``; the metadata
    holds ``format``, ``version`` and the JSON of ``effv2_kernels.structure``.

    Raises ModelError for a module that is not an optimised network and CheckpointError where the file
    cannot be written.
    """
    if not isinstance(model, OptimizedModel):
        inside = [name for name, part in model.named_modules() if isinstance(part, OptimizedModel)]
        raise ModelError(
            f"save() takes what optimize() returned for a whole network, but got {type(model).__name__}."
            + (f" It holds one at {', '.join(map(repr, inside))}: save that." if inside else "")
        )
    safetensors = _safetensors()
    metadata = {"format": SAVED_FORMAT, "version": _VERSION, **model.description()}
    tensors = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    try:
        safetensors.torch.save_file(tensors, path, metadata=metadata)
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"cannot write {os.fspath(path)}: {error}") from error


def load(
    path: str | os.PathLike[str],
    *,
    dtype: str = "fp32",
    backend: str = "auto",
    isa: str | None = None,
    threads: int | None = None,
    cuda_graph: bool = True,
    device: str | torch.device = "cpu",
) -> OptimizedModel:
    """Read a file of ``save`` onto ``device``. The other options are those of ``optimize``.

    Raises CheckpointError for a file that is missing, truncated, of another format or version, or whose
    tensors do not fit its description.
    """
    settings = Settings(backend, dtype, isa, threads, cuda_graph)
    where = torch.device(device)
    settings.choose(where)
    name = os.fspath(path)
    metadata, tensors = _read(name)
    if metadata.get("format") != SAVED_FORMAT:
        raise CheckpointError(
            f"{name} is a safetensors file, but was not written by effv2_kernels.save(). For a checkpoint of "
            f"a model use create_model(..., checkpoint=...) and optimize()."
        )
    if metadata.get("version") != _VERSION:
        raise CheckpointError(
            f"{name} has version {metadata.get('version')!r} of the format, and this package reads version "
            f"{_VERSION!r}. Save the model again, or use the package that wrote it."
        )
    try:
        outline = structure.parse(metadata.get("structure", ""))
        expected = outline.keys
        missing, extra = sorted({*expected} - {*tensors}), sorted({*tensors} - {*expected})
        if missing or extra:
            raise CheckpointError(
                f"{name} does not hold the tensors that it describes: "
                f"{_some('missing', missing)}{'; ' * bool(missing and extra)}{_some('unexpected', extra)}."
            )
        network = outline.rebuild([tensors[key] for key in expected])
    except ModelError as error:
        raise CheckpointError(f"{name} does not describe a network that can be run: {error}") from error
    for key, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{name}: '{key}' holds values that are not finite.")
    single = metadata.get("returns") == "tensor"
    return OptimizedModel(network, settings, device=where, single=single)


def _read(name: str) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    safetensors = _safetensors()
    try:
        with safetensors.safe_open(name, framework="pt") as file:
            return file.metadata() or {}, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no file {name}.") from error
    except OSError as error:
        raise CheckpointError(f"cannot read {name}: {error}") from error
    except safetensors.SafetensorError as error:
        raise CheckpointError(
            f"{name} is truncated or not a safetensors file ({error}); expected one of effv2_kernels.save()."
        ) from error


def _some(what: str, keys: list[str]) -> str:
    shown = ", ".join(keys[:5]) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")
    return f"{what} {shown}" if keys else ""


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise UnavailableError(
            "save() and load() need the package safetensors: pip install 'effv2_kernels[io]'."
        ) from error
    return safetensors
