"""What prepare.py made for a machine with a GPU: what is in its folder, and how it is used.

    kernels.tar.xz        Triton's kernels, see kernels.py
    _cuda.<Python>.so     the module of the CUDA kernels, for one kind of GPU
    wrappers              the tests of csrc/tests/cuda/wrappers.cu
    _native.<Python>.so   the CPU engine
    build.json            what all of it was made of and for

A checkout may hold other modules, such as the emulator's; those of the folder take their places.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "effv2_kernels"
CUDA, NATIVE = "_cuda", "_native"
KERNELS, WRAPPERS, DESCRIPTION = "kernels.tar.xz", "wrappers", "build.json"
# What is compiled into the modules and the tests of the wrappers.
_SOURCES = (
    "csrc/cpu", "csrc/cuda", "csrc/engine", "csrc/storage", "csrc/tests/cuda/wrappers.cu",
    "csrc/tests/cuda/wrappers.h", "python", "cmake/cuda.cmake", "CMakeLists.txt",
)  # fmt: skip
_SUFFIXES = (".h", ".cpp", ".cu", ".cmake", ".txt")


class Unusable(Exception):
    """A folder that cannot be used here; the message says why."""


def sources(root: Path = ROOT) -> str:
    """Of everything that decides what the modules compute; "" where there are no sources to compare with."""
    found: list[Path] = []
    for name in _SOURCES:
        path = root / name
        found += [path] if path.is_file() else path.rglob("*")
    files = [path for path in found if path.suffix in _SUFFIXES]
    return hash_of(files, root) if files else ""


def hash_of(files: Iterable[Path], root: Path) -> str:
    """Of the names and contents of some files below a folder."""
    hashed = hashlib.sha256()
    for path in sorted(files):
        hashed.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes())
    return hashed.hexdigest()[:16]


def describe(folder: Path, **more: Any) -> dict[str, Any]:
    """Write down what a folder was made of, for ``check``."""
    found = {"sources": sources(), **more}
    (folder / DESCRIPTION).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def description(folder: Path) -> dict[str, Any]:
    """What ``describe`` wrote. Raises Unusable where it did not."""
    try:
        found: dict[str, Any] = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        _ = found["sources"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Unusable(
            f"{folder} is no folder of bench/gpu/prepare.py ({type(error).__name__}: {error})"
        ) from error
    return found


def check(folder: Path) -> None:
    """Raises Unusable where a folder is none of prepare.py, of other sources, or for another Python."""
    made_of = description(folder)["sources"]
    here = sources()
    if here and made_of != here:
        raise Unusable(f"what is in {folder} was compiled from other sources than those of this checkout")
    for name in (CUDA, NATIVE):
        module_of(folder, name)


def module_of(folder: Path, name: str) -> Path:
    """CUDA or NATIVE for the Python that runs. Raises Unusable where there is none."""
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = folder / f"{name}{suffix}"
        if path.exists():
            return path
    there = ", ".join(sorted(path.name for path in folder.glob(f"{name}.*"))) or "none"
    wanted = f"{name}{importlib.machinery.EXTENSION_SUFFIXES[0]}"
    raise Unusable(f"{folder} has no module for this Python, {wanted}; those in it: {there}")


def digest(folder: Path) -> str:
    """Tells figures of these CUDA kernels from those of others."""
    return hashlib.sha256(module_of(folder, CUDA).read_bytes()).hexdigest()[:16]


def load(folder: Path, name: str) -> Any:
    """CUDA or NATIVE, from now on that of effv2_kernels; NATIVE before that is imported.

    Raises Unusable where it cannot be loaded.
    """
    path, full = module_of(folder, name), f"{PACKAGE}.{name}"
    spec = importlib.util.spec_from_file_location(full, path)
    assert spec is not None
    assert spec.loader is not None
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError as error:
        raise Unusable(f"{path} cannot be loaded: {error}") from error
    sys.modules[full] = module
    package = sys.modules.get(PACKAGE)
    if package is not None:
        setattr(package, name, module)
    return module
