"""Optimised models on disk: a safetensors file whose metadata describes the blocks. No pickle is read."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import torch
from torch import nn

from effv2_kernels import container, devices, memory, structure
from effv2_kernels import labels as class_names
from effv2_kernels.backends import DTYPE_NAMES, TORCH_DTYPES, Settings
from effv2_kernels.blocks import BLOCK_TYPES
from effv2_kernels.checkpoint.files import SAVED_FORMAT
from effv2_kernels.declaration import arguments
from effv2_kernels.errors import CheckpointError, InputError, ModelError, UnavailableError, UnknownNameError
from effv2_kernels.model import OptimizedModel
from effv2_kernels.outline import Outline
from effv2_kernels.replacing import replacing

# By the dtype of the right operands of products; everything else is in float32.
_VERSIONS = {"fp32": "1", "fp16": "2"}


@memory.needed_to("save this network")
def save(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    dtype: str = "fp32",
    labels: Sequence[str] | None = None,
) -> None:
    """Write what ``optimize`` returned to a file that ``load`` and the C library read on any machine.

    Tensors are named as in the model's state dict and described in ``effv2_kernels.blocks``; the metadata
    holds ``format``, ``version`` and the JSON of ``effv2_kernels.structure``.

    dtype: "fp32", or "fp16" to round the weights of linear layers and of dense convolutions to 16 bits: half
    the size, and exactly what a machine that computes in fp16 multiplies with. It is possible on any machine,
    and says nothing of what the network will run in.

    labels: the names of the classes, one for each, each of one line. By default those that a loaded model
    brought along, its attribute ``labels``; ``()`` leaves them out.

    Raises ModelError for a module that is not an optimised network and for weights beyond 65504 in fp16,
    UnknownNameError for another dtype, InputError for labels that are not one name per class,
    CheckpointError where the file cannot be written, and UnavailableError where there is not enough memory.
    """
    if dtype not in _VERSIONS:
        raise UnknownNameError.of("dtype of a file", dtype, _VERSIONS)
    if not isinstance(model, OptimizedModel):
        parts = model.named_modules() if isinstance(model, nn.Module) else ()
        inside = [name for name, part in parts if isinstance(part, OptimizedModel)]
        raise ModelError(
            f"save() takes what optimize() returned for a whole network, but got {type(model).__name__}."
            + (f" It holds one at {', '.join(map(repr, inside))}: save that." if inside else "")
        )
    safetensors = _safetensors()
    metadata = {"format": SAVED_FORMAT, "version": _VERSIONS[dtype], **model.description()}
    names = _labels_of(model) if labels is None else _listed(labels)
    if names:
        try:
            class_names.check(names, class_names.classes_of(model.network))
        except ValueError as error:
            raise InputError(f"labels: {error}; give one name per class, each of one line.") from error
        metadata["labels"] = class_names.to_json(names)
    tensors = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    if dtype != "fp32":
        metadata["dtype"] = dtype
        stored = _dtypes(structure.parse(metadata["structure"]), dtype)
        tensors = {name: _rounded(name, t, stored[name]) for name, t in tensors.items()}
    try:
        with replacing(Path(path)) as part:
            safetensors.torch.save_file(tensors, part, metadata=metadata)
            container.sort_metadata(part)
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"cannot write {os.fspath(path)}: {error}") from error


def _listed(labels: Sequence[str]) -> list[str]:
    """The elements of any sequence, an array of NumPy's as well. Raises InputError where it has no order."""
    if isinstance(labels, (str, bytes, Mapping, Set)) or not isinstance(labels, Iterable):
        raise InputError(
            f"labels must be a list of names, one for each class, but are of type {type(labels).__name__}."
        )
    return list(labels)


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

    dtype is what the network runs in, whatever its weights were stored in: those of an fp16 file become
    float32 tensors of exactly these values. The names of classes, where the file has them, are the result's
    attribute ``labels``, a tuple of strings.

    Raises CheckpointError for a file that is missing, truncated, no regular file, of another format or
    version, or whose tensors or labels do not fit its description, and UnavailableError where there is not
    enough memory.
    """
    settings = Settings(backend, dtype, isa, threads, cuda_graph)
    where = devices.named(device, "load() takes a device of PyTorch, such as 'cpu' or 'cuda'")
    settings.choose(where)
    name = os.fsdecode(path)
    try:
        return _read(name, settings, where)
    except (MemoryError, OSError, RuntimeError) as error:
        if not memory.lacks(error):
            raise
        raise memory.refusal(f"load {name}, {memory.amount(os.path.getsize(name))} in the file") from error


def _read(name: str, settings: Settings, where: torch.device) -> OptimizedModel:
    stored = _header(name)
    metadata = stored.metadata
    if metadata.get("format") != SAVED_FORMAT:
        raise CheckpointError(
            f"{name} is a safetensors file, but was not written by effv2_kernels.save(). For a checkpoint of "
            f"a model use create_model(..., checkpoint=...) and optimize()."
        )
    saved_in = _saved_dtype(metadata, name)
    try:
        container.check_values(stored)
        tensors = _tensors(name)
        outline = structure.read(metadata.get("structure", ""))
        expected = outline.keys
        missing, extra = sorted({*expected} - {*tensors}), sorted({*tensors} - {*expected})
        if missing or extra:
            raise CheckpointError(
                f"{name} does not hold the tensors that it describes: "
                f"{_some('missing', missing)}{'; ' * bool(missing and extra)}{_some('unexpected', extra)}."
            )
        dtypes = _dtypes(outline, saved_in)
        for key, tensor in tensors.items():
            if tensor.dtype is not dtypes[key]:
                raise ModelError(f"{key} is {tensor.dtype}; expected {dtypes[key]}")
        network = outline.rebuild([tensors[key].float() for key in expected])
    except (ModelError, ValueError) as error:
        reason = str(error).rstrip(".")
        raise CheckpointError(f"{name} does not describe a network that can be run: {reason}.") from error
    for key, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{name}: '{key}' holds values that are not finite.")
    attributes = {}
    if "labels" in metadata:
        try:
            attributes["labels"] = class_names.from_json(metadata["labels"], class_names.classes_of(network))
        except ValueError as error:
            raise CheckpointError(f"{name} has labels that do not name its classes: {error}.") from error
    single = metadata.get("returns") == "tensor"
    return OptimizedModel(network, settings, device=where, single=single, attributes=attributes)


def _labels_of(model: OptimizedModel) -> tuple[str, ...]:
    """Those that it was loaded with; a model may have carried over something else of that name."""
    found = vars(model).get("labels")
    if not isinstance(found, tuple) or len(found) != class_names.classes_of(model.network):
        return ()
    return found if all(isinstance(label, str) for label in found) else ()


def _saved_dtype(metadata: dict[str, str], name: str) -> str:
    """What the right operands of products are stored in."""
    version = metadata.get("version")
    if version not in _VERSIONS.values():
        known = " and ".join(map(repr, _VERSIONS.values()))
        given = "no version" if version is None else f"version {version!r}"
        raise CheckpointError(
            f"{name} has {given} of the format, and this package reads versions {known}. Save "
            f"the model again, or use a package as new as the one that wrote it."
        )
    dtype = metadata.get("dtype") if version != _VERSIONS["fp32"] else "fp32"
    if dtype is None or _VERSIONS.get(dtype) != version:
        given = "no dtype" if dtype is None else f"dtype {dtype!r}"
        raise CheckpointError(
            f"{name} has {given}; expected 'fp16' in version {version!r}. Save the model again, or use a "
            f"package as new as the one that wrote it."
        )
    return dtype


def _dtypes(outline: Outline, dtype: str) -> dict[str, torch.dtype]:
    """What every tensor is stored in, in a file of this dtype."""
    found = dict.fromkeys(outline.keys, torch.float32)
    for i, part in enumerate(outline.parts):
        for argument in arguments(BLOCK_TYPES[part.kind]):
            key = f"blocks.{i}.{argument.name}"
            if argument.operand and key in found:
                found[key] = TORCH_DTYPES[dtype]
    return found


def _rounded(key: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if tensor.dtype is dtype:
        return tensor
    largest = tensor.abs().max().item()
    most = torch.finfo(dtype).max
    if largest > most:
        _, block, name = key.split(".")
        raise ModelError(
            f"{name} of block {block} has a weight of magnitude {largest:g}, and {DTYPE_NAMES[dtype]} ends "
            f"at {most:g}: save it in fp32."
        )
    return tensor.to(dtype)


def _header(name: str) -> container.Container:
    try:
        return container.read(name)
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no file {name}.") from error
    except OSError as error:
        raise _unreadable(name, error) from error
    except ValueError as error:
        raise _not_safetensors(name, error) from error


def _tensors(name: str) -> dict[str, torch.Tensor]:
    safetensors = _safetensors()
    try:
        with safetensors.safe_open(name, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise _unreadable(name, error) from error
    except safetensors.SafetensorError as error:
        raise _not_safetensors(name, error) from error


def _unreadable(name: str, error: OSError) -> Exception:
    if memory.lacks(error):
        return error
    return CheckpointError(
        f"cannot read {name}: {error.strerror or error}; give a file that effv2_kernels.save() wrote."
    )


def _not_safetensors(name: str, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{name} is truncated or not a safetensors file ({error}); expected one of effv2_kernels.save()."
    )


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
