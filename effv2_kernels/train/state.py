"""Files of a run that are whole or not there: written beside, flushed to the disk, renamed.

A checkpoint holds plain values and tensors alone, so that ``torch.load(weights_only=True)`` reads it.
"""

from __future__ import annotations

import errno
import io
import os
import random
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from effv2_kernels import fields, memory
from effv2_kernels.errors import TrainingError, reason
from effv2_kernels.replacing import replacing

FORMAT = 1


def write(path: Path, content: bytes | Callable[[BinaryIO], object]) -> None:
    """Write a file so that a crash at any moment leaves the old one or the new one.

    Raises TrainingError where the disk is full or the folder cannot be written; the old file stays.
    """
    try:
        with replacing(path) as part, part.open("wb") as file:
            if isinstance(content, bytes):
                file.write(content)
            else:
                content(file)
            file.flush()
            os.fsync(file.fileno())
        _sync_folder(part.parent)
    except (OSError, RuntimeError) as error:  # torch.save makes RuntimeErrors of the system's
        if memory.lacks(error):
            raise
        raise _refusal(path, error) from error


def append(path: Path, content: bytes) -> None:
    """Write behind what a file holds, which is made where it is not there.

    Raises TrainingError as ``write`` does, and the file is as it was.
    """
    size = path.stat().st_size if path.exists() else None
    try:
        with path.open("ab") as file:
            file.write(content)
    except OSError as error:
        if memory.lacks(error):
            raise
        with suppress(OSError):
            if size is None:
                path.unlink()
            else:
                os.truncate(path, size)
        raise _refusal(path, error) from error


def _refusal(path: Path, error: OSError | RuntimeError) -> TrainingError:
    """What to say of a file that the system did not let be written."""
    cause = error if isinstance(error, OSError) else error.__context__ or error
    said = cause.strerror if isinstance(cause, OSError) and cause.strerror else reason(cause)
    stays = f"the old '{path.name}' is whole" if path.exists() else "there is none yet"
    full = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    remedy = "Make room" if full or not isinstance(cause, OSError) else "See to that it can be written"
    return TrainingError(f"cannot write '{path}' ({said}); {stays}. {remedy}, and go on with --resume.")


def _sync_folder(folder: Path) -> None:
    """Make a rename outlive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def save(path: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint. Raises TrainingError as ``write`` does."""
    write(path, lambda file: torch.save({"format": FORMAT, **content}, file))


def load(path: Path) -> dict[str, Any]:
    """A checkpoint that ``save`` wrote, on the CPU. Raises TrainingError for anything else."""
    try:
        content = torch.load(io.BytesIO(path.read_bytes()), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes torch.load raise nearly anything
        if memory.lacks(error):
            raise
        raise TrainingError(
            f"'{path}' is no checkpoint of a run ({type(error).__name__}): take it away, or give another "
            "folder."
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise TrainingError(f"'{path}' is no checkpoint of a run of this version: take it away.")
    return content


def random_state() -> dict[str, Any]:
    """Where the generators of python, numpy and torch are."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    version, internal, following = random.getstate()
    return {
        "python": [version, list(internal), following],
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Put them there again."""
    version, internal, following = state["python"]
    random.setstate((version, tuple(internal), following))
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def differences(saved: Mapping[str, Any], given: Mapping[str, Any], now: str = "now") -> list[str]:
    """ "epochs 300, now 450" for every plain value that is not the same, in the order of the first."""
    names = list(dict.fromkeys([*saved, *given]))
    return [
        f"{name} {fields.shown(saved.get(name))}, {now} {fields.shown(given.get(name))}"
        for name in names
        if saved.get(name) != given.get(name)
    ]
