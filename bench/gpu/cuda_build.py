"""The CUDA kernels in a folder of their own, made by prepare_cuda.py: what is in it, and how it is used.

    _cuda.<Python>.so   the module, for one kind of GPU; of several versions of Python, each has its own
    wrappers            the tests of csrc/tests/cuda/wrappers.cu
    build.json          what both were made of and for

A checkout may hold another module, such as the emulator's; the one of the folder takes its place.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
MODULE = "effv2_kernels._cuda"
WRAPPERS, DESCRIPTION = "wrappers", "build.json"
# What is compiled into the two.
_SOURCES = (
    "csrc/cuda", "csrc/storage/half.h", "csrc/tests/cuda/wrappers.cu", "csrc/tests/cuda/wrappers.h",
    "python/cuda_module.cpp", "python/cuda_steps.cpp", "python/cuda_steps.h", "cmake/cuda.cmake",
)  # fmt: skip
_SUFFIXES = (".h", ".cpp", ".cu", ".cmake")


class Unusable(Exception):
    """A folder with kernels that cannot be used here; the message says why."""


def sources(root: Path = ROOT) -> str:
    """Of everything that decides what the kernels compute; "" where there are no sources to compare with."""
    found: list[Path] = []
    for name in _SOURCES:
        path = root / name
        found += [path] if path.is_file() else path.rglob("*")
    files = sorted(path for path in found if path.suffix in _SUFFIXES)
    hashed = hashlib.sha256()
    for path in files:
        hashed.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes())
    return hashed.hexdigest()[:16] if files else ""


def describe(folder: Path, **more: Any) -> dict[str, Any]:
    """Write down what a folder was made of, for ``check``."""
    found = {"sources": sources(), **more}
    (folder / DESCRIPTION).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def check(folder: Path) -> dict[str, Any]:
    """What a folder holds. Raises Unusable where it is none, or of other sources than this checkout's."""
    try:
        found = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        made_of = found["sources"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Unusable(
            f"{folder} is no folder of bench/gpu/prepare_cuda.py ({type(error).__name__}: {error})"
        ) from error
    here = sources()
    if here and made_of != here:
        raise Unusable(
            f"the kernels in {folder} were compiled from other sources than those of this checkout"
        )
    return {**found, "module": module_of(folder).name}


def module_of(folder: Path) -> Path:
    """The module for the Python that runs. Raises Unusable where there is none."""
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = folder / f"_cuda{suffix}"
        if path.exists():
            return path
    there = ", ".join(sorted(path.name for path in folder.glob("_cuda.*"))) or "none"
    wanted = f"_cuda{importlib.machinery.EXTENSION_SUFFIXES[0]}"
    raise Unusable(f"{folder} has no module for this Python, {wanted}; those in it: {there}")


def digest(folder: Path) -> str:
    """Tells figures of this build from those of another."""
    return hashlib.sha256(module_of(folder).read_bytes()).hexdigest()[:16]


def load(folder: Path) -> Any:
    """The module, from now on that of effv2_kernels. Raises Unusable where it cannot be loaded."""
    import effv2_kernels

    path = module_of(folder)
    spec = importlib.util.spec_from_file_location(MODULE, path)
    assert spec is not None
    assert spec.loader is not None
    try:
        module = importlib.util.module_from_spec(spec)
        sys.modules[MODULE] = module
        spec.loader.exec_module(module)
    except ImportError as error:
        sys.modules.pop(MODULE, None)
        raise Unusable(f"{path} cannot be loaded: {error}") from error
    effv2_kernels._cuda = module  # type: ignore[attr-defined]
    return module
