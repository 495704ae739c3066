"""What a compiled graph with these kernels in it depends on, for the cache of Torch's compiler.

That cache keeps compiled graphs on disk, by a key made of the graph as it was before ops were replaced by
their launches. Of an op the key knows the name, and the sources of the kernels that are listed for that name.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl

import effv2_kernels
from effv2_kernels.gpu.findings import findings_of
from effv2_kernels.triton.launch import Launch

STATE = ""


@triton.jit
def state():
    """Never launched. It is listed for every op, and its source brings ``STATE`` into the key."""
    tl.static_print(STATE)


def kernel(gpu: torch.device) -> Any:
    """``state`` as it is now: the code of this package and the tiles that were measured on ``gpu``."""
    global STATE
    tiles = b""
    with suppress(OSError):
        path = findings_of(gpu).tiles.of(Launch).path
        tiles = b"" if path is None else path.read_bytes()
    STATE = f"{code_of(Path(effv2_kernels.__file__).parent)} {hashlib.sha256(tiles).hexdigest()}"
    return state


@lru_cache
def code_of(folder: Path) -> str:
    """A hash of all Python files in and below a folder."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        found.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()
