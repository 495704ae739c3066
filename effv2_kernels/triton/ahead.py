"""Compile kernels for a GPU that need not be there, and read what they take of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import MockTensor

import effv2_kernels
from effv2_kernels.errors import InputError, UnavailableError
from effv2_kernels.gpu.launch import FeatureMap, Tile
from effv2_kernels.gpu.resources import SHARED_BYTES, Resources
from effv2_kernels.triton.tiles import INTERPRETED

if TYPE_CHECKING:
    from effv2_kernels.triton.launch import Launch

_POINTERS = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32"}

# An argument of each kind; buffers start at a multiple of 16 bytes.
_EXAMPLES = {name: MockTensor(dtype) for dtype, name in _POINTERS.items()} | {"i32": 2, "i64": 2**31}


@dataclass(frozen=True)
class Compilation:
    """All that Triton needs to compile one kernel, as plain data that JSON can hold."""

    module: str
    kernel: str
    signature: dict[str, str]  # by argument: "*fp16", "i32", "constexpr"
    constants: dict[str, int | bool | str]
    options: dict[str, int | bool]
    capability: int

    @classmethod
    def of(cls, launch: Launch, tile: Tile, capability: int) -> Compilation:
        """For one launch with one tile, on a GPU of e.g. capability 90."""
        constants, options = launch.settings(tile)
        signature = {
            name: "constexpr" if name in constants else _type_of(launch.arguments[name])
            for name in launch.kernel.arg_names
        }
        module = launch.kernel.__module__
        return cls(module, launch.name, signature, constants, options, capability)

    def run(self) -> Any:
        """What Triton made; it is in Triton's cache then, where launches find it.

        Not beside launches in other threads.
        """
        arguments = {name: _EXAMPLES[kind] for name, kind in self.signature.items() if kind in _EXAMPLES}
        kernel: Any = getattr(import_module(self.module), self.kernel)
        with _as_if_on(self.capability):
            return kernel.warmup(**arguments, **self.constants, **self.options, grid=(1,))


class Elsewhere:
    """What Triton asks of a GPU before it compiles for it, answered for one that is not there."""

    def __init__(self, capability: int) -> None:
        self._capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._capability, 32)

    def get_current_device(self) -> int:
        return self._capability  # Triton asks once for the target of each device

    def get_current_stream(self, device: int = 0) -> int:
        return 0


@contextmanager
def _as_if_on(capability: int) -> Iterator[None]:
    """As for a launch: what Triton's versions make of arguments differs, and with it where they look."""
    before = getattr(driver, "_active", None)
    driver.set_active(Elsewhere(capability))
    try:
        yield
    finally:
        driver.set_active(before)


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
    made = Compilation.of(launch, tile, capability).run()
    registers, stack = _usage(made.asm["cubin"])
    return Resources(registers, stack, made.metadata.shared)


def compile_in_parallel(pairs: Iterable[tuple[Launch, Tile]], capability: int) -> None:
    """Compile launches with their tiles into Triton's cache, in as many processes as there are processors.

    But no more than 16, of 0.3 GB each: a container may be given fewer processors than it sees.

    What does not compile is left for whoever launches it to find out.
    """
    wanted = {json.dumps(asdict(Compilation.of(launch, tile, capability))) for launch, tile in pairs}
    workers = min(len(wanted), len(os.sched_getaffinity(0)), 16)
    if not sys.executable or workers == 0:
        return
    root = str(Path(effv2_kernels.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    shares = [sorted(wanted)[i::workers] for i in range(workers)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        for _ in shares
    ]
    for process, share in zip(processes, shares, strict=True):
        assert process.stdin is not None
        with suppress(OSError), process.stdin:  # a process that died takes nothing
            process.stdin.write("\n".join(share).encode())
    for process in processes:
        process.wait()


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


if __name__ == "__main__":  # one of the processes of compile_in_parallel
    # All of it before the first is compiled: the other processes wait until this one has taken its share.
    for line in sys.stdin.read().splitlines():
        with suppress(Exception):
            Compilation(**json.loads(line)).run()
