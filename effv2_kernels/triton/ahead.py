"""Compile kernels for a GPU that need not be there, and read what they take of it."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from effv2_kernels.errors import InputError, UnavailableError
from effv2_kernels.triton.launch import FeatureMap, Launch, Tile
from effv2_kernels.triton.tiles import INTERPRETED

# Bytes of shared memory that one program can have, by compute capability (CUDA C++ programming guide,
# technical specifications by compute capability).
SHARED_BYTES = {
    75: 65536,
    80: 166912,
    86: 101376,
    87: 166912,
    89: 101376,
    90: 232448,
    100: 232448,
    120: 101376,
}

_POINTERS = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32"}


@dataclass(frozen=True)
class Resources:
    """What one program of a compiled kernel takes."""

    registers: int  # of each thread
    stack: int  # bytes of each thread: spilled registers
    shared: int  # bytes

    def fits(self, capability: int) -> bool:
        return self.stack == 0 and self.shared <= SHARED_BYTES[capability]


def compile_ahead(launch: Launch, tile: Tile, capability: int) -> Resources:
    """Compile one launch with one tile, e.g. for capability 90, and read its resources off the machine code.

    Raises UnavailableError under TRITON_INTERPRET=1 and InputError for an unknown capability.
    """
    if INTERPRETED:
        raise UnavailableError(
            "kernels cannot be compiled under TRITON_INTERPRET=1. Unset it before effv2_kernels.triton is "
            "imported."
        )
    if capability not in SHARED_BYTES:
        known = ", ".join(map(str, SHARED_BYTES))
        raise InputError(f"compute capability must be one of {known}, but got {capability!r}.")
    constants = {**launch.constants, **tile.blocks}
    names = launch.kernel.arg_names
    signature, aligned = {}, {}
    for i, name in enumerate(names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        signature[name] = _type_of(launch.arguments[name])
        if signature[name].startswith("*"):  # every buffer starts at a multiple of 16 bytes
            aligned[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(launch.kernel, signature=signature, constexprs=constants, attrs=aligned)
    made = triton.compile(
        source,
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": tile.warps, "num_stages": tile.stages},
    )
    registers, stack = _usage(made.asm["cubin"])
    return Resources(registers, stack, made.metadata.shared)


def first_that_fits(launch: Launch, capability: int) -> tuple[Tile, Resources]:
    """The first of a launch's tiles that neither spills nor needs more shared memory than the chip has.

    Raises UnavailableError where none does.
    """
    for tile in launch.tiles:
        made = compile_ahead(launch, tile, capability)
        if made.fits(capability):
            return tile, made
    raise UnavailableError(
        f"none of the {len(launch.tiles)} tiles of {launch.name} fits a GPU of compute capability "
        f"{capability}: {made}. Use another GPU or precision."
    )


def _type_of(value: Any) -> str:
    if isinstance(value, (FeatureMap, Tensor)):
        return _POINTERS[value.dtype]
    return "i64" if value >= 2**31 else "i32"


def _usage(cubin: bytes) -> tuple[int, int]:
    """(registers, stack bytes) of the one kernel in a cubin."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        printed = subprocess.run(
            [str(tool), "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", printed)
    assert found is not None, printed
    return int(found[1]), int(found[2])
