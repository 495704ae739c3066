"""Read a weight file by what is in it, whatever it is called; nothing in a file is executed.

Read: safetensors, and torch's own formats with ``weights_only=True``. Everything else that people hand over
as a checkpoint is named, with what to do about it.
"""

from __future__ import annotations

import argparse
import contextlib
import pickletools
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from effv2_kernels import memory
from effv2_kernels.errors import CheckpointError, UnavailableError

# What `effv2_kernels.save` writes into the metadata of its files.
SAVED_FORMAT = "effv2_kernels.network"

_HEAD = 512  # bytes that tell the kinds apart
_MOST_HEADER = 100_000_000  # bytes; safetensors itself refuses a longer header
_SHOWN = 5  # names that a message lists
_TORCH_LEGACY = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"  # PyTorch's magic number, pickled

# First bytes of files that are no checkpoint, what they are, and what to do.
_FOREIGN: tuple[tuple[bytes, str], ...] = (
    (
        b"version https://git-lfs",
        "is a Git LFS pointer and not the weights: run `git lfs pull` where it is from",
    ),
    (b"\x1f\x8b", "is compressed by gzip: unpack it and give the weight file in it"),
    (b"BZh", "is compressed by bzip2: unpack it and give the weight file in it"),
    (b"\xfd7zXZ\x00", "is compressed by xz: unpack it and give the weight file in it"),
    (b"\x28\xb5\x2f\xfd", "is compressed by zstd: unpack it and give the weight file in it"),
    (b"7z\xbc\xaf\x27\x1c", "is a 7z archive: unpack it and give the weight file in it"),
    (b"\x89HDF\r\n", "is an HDF5 file, as Keras writes: give the .pth or .safetensors file"),
    (b"\x93NUMPY", "is a NumPy array: give the .pth or .safetensors file"),
    (b"GGUF", "is a GGUF file: give the .pth or .safetensors file"),
)
_ONNX = (
    "looks like an ONNX file, which holds a converted network: give the .pth or .safetensors file that it "
    "was made of"
)
_TORCHSCRIPT = (
    "is a TorchScript archive, which holds code: save its weights alone, "
    "torch.save(torch.jit.load(path).state_dict(), 'weights.pth'), and give that file"
)
_EXPORTED = (
    "is a program of torch.export, which holds code: save its weights alone, "
    "torch.save(dict(torch.export.load(path).state_dict), 'weights.pth'), and give that file"
)
_COMPILED = "is a network compiled by AOTInductor: give the .pth or .safetensors file that it was made of"
_SAVED = (
    "is an optimised network that effv2_kernels.save() wrote: effv2_kernels.load(path) reads it, and needs "
    "no checkpoint"
)
_TRUNCATED = "is truncated or not a checkpoint"
_PICKLE = (
    "is a pickle that torch.save did not write, which is never loaded: where you trust it, load it with the "
    "package that wrote it and torch.save the state dict"
)

# Where a file that cannot be read keeps its weights, by the names in it: the average first, as timm does.
_ADVISED = ("state_dict_ema", "model_ema", "ema", "ema_model", "state_dict", "model_state_dict", "model")


def read(file: Path) -> Mapping[str, Any]:
    """The contents of a file, its tensors on the CPU.

    Raises CheckpointError where it is missing, truncated, or of a kind that is not read.
    """
    if file.is_dir():
        inside = sorted(p.name for p in file.iterdir() if p.suffix in (".safetensors", ".pth", ".pt", ".bin"))
        raise CheckpointError(
            f"checkpoint '{file}' is not a file but a directory: give the weight file in it"
            + (f" ({', '.join(inside[:_SHOWN])})." if inside else ".")
        )
    if not file.is_file():
        raise CheckpointError(
            f"checkpoint '{file}' is not a file: give the path of a .pth or .safetensors file."
        )
    head, size = _head(file)
    if is_saved_network(file):
        raise CheckpointError(f"checkpoint '{file}' {_SAVED}.")
    if _is_safetensors(head, size):
        return _read_safetensors(file)
    refusal = _refusal(file, head)
    if refusal is not None:
        raise CheckpointError(f"checkpoint '{file}' {refusal}.")
    return _read_torch(file)


def is_saved_network(file: Path) -> bool:
    """Whether ``effv2_kernels.save`` wrote the file, by its contents."""
    if not file.is_file():
        return False
    head, size = _head(file)
    if not _is_safetensors(head, size):
        return False
    with file.open("rb") as opened:
        return f'"{SAVED_FORMAT}"'.encode() in opened.read(8 + int.from_bytes(head[:8], "little"))


def nature(file: Path) -> str:
    """What a file is that was taken for a saved network, behind its name in messages; by its contents."""
    if file.is_dir():
        return "is a directory"
    if not file.is_file():
        return "is no regular file"
    head, size = _head(file)
    if size == 0:
        return "is empty"
    if _is_safetensors(head, size):
        return "is a safetensors file with something else in it"
    refusal = _refusal(file, head)
    if refusal is None:
        return "is a file of torch.save, such as a checkpoint"
    said = refusal.partition(":")[0]
    return "is none" if said.startswith(_TRUNCATED) else said


def _head(file: Path) -> tuple[bytes, int]:
    try:
        with file.open("rb") as opened:
            return opened.read(_HEAD), file.stat().st_size
    except OSError as error:
        raise CheckpointError(f"checkpoint '{file}' cannot be read: {error}.") from error


def _is_safetensors(head: bytes, size: int) -> bool:
    length = int.from_bytes(head[:8], "little")
    return size > 8 and 2 <= length <= _MOST_HEADER and head[8:9] == b"{"


def _refusal(file: Path, head: bytes) -> str | None:
    """Why a file that is no safetensors file is not given to torch.load; None where it is."""
    if head.startswith(b"PK"):
        return _zip_refusal(file)
    for magic, meaning in _FOREIGN:
        if head.startswith(magic):
            return meaning
    if head[257:262] == b"ustar":
        return "is a tar archive: unpack it and give the weight file in it"
    if head.startswith(_TORCH_LEGACY):
        return None
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return _PICKLE
    # The version of ONNX's format, its first field, and the number of any field that follows.
    if (
        head[:1] == b"\x08"
        and 1 <= int.from_bytes(head[1:2], "little") <= 30
        and head[2:3] in b"\x12\x1a\x22\x28\x32\x3a\x42"
    ):
        return _ONNX
    return f"{_TRUNCATED}: {_described(head)}"


def _described(head: bytes) -> str:
    if not head:
        return "it is empty; fetch it again"
    if not any(head):
        return "it begins with nothing but zeros, as a download that was cut off does; fetch it again"
    text = head.decode("utf-8", errors="replace").strip()
    if re.match(r"(?i)(<!doctype html|<html)", text):
        return (
            "it is a web page, as a download leaves it that needs a login or a click; open its address in a "
            "browser, and fetch the file itself"
        )
    if all(c.isprintable() or c.isspace() for c in text) and "\ufffd" not in text[:-1]:
        return f"it is text that begins {text.splitlines()[0][:60]!r}; give the weight file itself"
    return f"it begins with the bytes {head[:4].hex(' ')}; fetch it again"


def _zip_refusal(file: Path) -> str | None:
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError):
        return f"{_TRUNCATED}: it begins as PyTorch's files do and has no end; fetch it again"
    parts = {part for name in names for part in name.split("/")}
    if "constants.pkl" in parts:
        return _TORCHSCRIPT
    if "serialized_exported_program.json" in parts or {"archive_format", "models"} <= parts:
        return _EXPORTED
    if "aotinductor" in parts:
        return _COMPILED
    if "data.pkl" in parts:
        return None
    if names and all(name.endswith(".npy") for name in names):
        return "is an archive of NumPy arrays: give the .pth or .safetensors file"
    shown = ", ".join(names[:_SHOWN]) + (" and others" if len(names) > _SHOWN else "")
    return f"is a zip archive of {shown or 'nothing'}: unpack it and give the weight file in it"


def _read_safetensors(file: Path) -> Mapping[str, Any]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise CheckpointError(
            f"reading '{file}' needs the package safetensors: pip install 'effv2_kernels[io]'."
        ) from error
    try:
        tensors: Mapping[str, Any] = load_file(file)
    except Exception as error:  # safetensors raises its own type, OSError and others for a damaged file
        if memory.lacks(error):
            raise _too_large(file) from error
        raise CheckpointError(
            f"checkpoint '{file}' is truncated or not a safetensors file ({error}): fetch it again."
        ) from error
    return tensors


def _read_torch(file: Path) -> Mapping[str, Any]:
    # Training scripts in the style of DeiT save their options too: a plain container, safe to build.
    allowed = getattr(torch.serialization, "safe_globals", None)  # torch >= 2.5
    try:
        # Opened here, since newer PyTorch goes by the suffix of a path, too.
        with (
            file.open("rb") as opened,
            allowed([argparse.Namespace]) if allowed else contextlib.nullcontext(),
        ):
            content = torch.load(opened, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes torch.load raise nearly anything
        if memory.lacks(error):
            raise _too_large(file) from error
        if "Unsupported global" in str(error) or "Unsupported class" in str(error):
            reason = _objects(file)
        else:
            reason = f"{_TRUNCATED} ({type(error).__name__}): fetch it again"
        raise CheckpointError(f"checkpoint '{file}' {reason}.") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"checkpoint '{file}' holds a {type(content).__name__}, not a state dict: save "
            f"model.state_dict() instead."
        )
    return content


def _too_large(file: Path) -> UnavailableError:
    return memory.refusal(f"read checkpoint '{file}', {memory.amount(file.stat().st_size)} in the file")


def _objects(file: Path) -> str:
    """What to say of a file that torch.load would have to execute."""
    classes, words = _pickled(file)
    kinds = ", ".join(classes[:_SHOWN]) + (" and others" if len(classes) > _SHOWN else "")
    named = next((name for name in _ADVISED if name in words), None)
    if "state_dict" in words and words & {"message_hub", "current_model_state"}:
        named = "state_dict"  # mmengine and Lightning keep the average there; see choice.py
    weights = "w" if named is None else f"w[{named!r}]"
    return (
        f"holds Python objects besides tensors{f' ({kinds})' if kinds else ''}, which are never loaded: "
        f"where you trust it, and with the code that wrote it at hand, save its weights alone: "
        f"w = torch.load(path, weights_only=False); w = {weights}; "
        f"torch.save(getattr(w, 'state_dict', lambda: w)(), 'weights.pth')"
    )


def _pickled(file: Path) -> tuple[list[str], set[str]]:
    """The classes that a file names, the outermost first, and the words in it.

    The pickle is parsed, and never run.
    """
    refused: set[str] = set()
    find = getattr(torch.serialization, "get_unsafe_globals_in_checkpoint", None)  # torch >= 2.6
    if find is not None:
        with contextlib.suppress(Exception):  # only the message is poorer without it
            refused = {*find(str(file))} - {"argparse.Namespace"}
    classes: list[str] = []
    words: set[str] = set()
    with contextlib.suppress(Exception), zipfile.ZipFile(file) as archive:
        pickled = next(name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl")
        for operation, argument, _ in pickletools.genops(archive.read(pickled)):
            if operation.name == "GLOBAL":
                classes.append(str(argument).replace(" ", "."))
            elif isinstance(argument, str):
                words.add(argument)
    ordered = [name for name in dict.fromkeys(classes) if name in refused]
    return ordered + sorted(refused.difference(ordered)), words
