"""One launch of a Triton kernel: how it runs, and how it is compiled for the GPU at hand."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import triton
from torch import Tensor
from triton.runtime.errors import OutOfResources, PTXASError
from triton.runtime.jit import MockTensor

from effv2_kernels.gpu import launch as gpu_launch
from effv2_kernels.gpu.launch import FeatureMap, Tile
from effv2_kernels.gpu.resources import Resources
from effv2_kernels.triton.ahead import compile_in_parallel
from effv2_kernels.triton.tiles import INTERPRETED

if TYPE_CHECKING:
    from typing_extensions import Self

# Triton has one listener for all threads.
_LISTENING = threading.Lock()


@dataclass(frozen=True, eq=False)
class Launch(gpu_launch.Launch):
    """One of Triton's kernels on some buffers, for any of its ``tiles``.

    constants: the constexprs that do not depend on the tile. programs: size of the grid for a tile.
    """

    backend: ClassVar[str] = "triton"
    compiler: ClassVar[str] = f"triton-{triton.__version__}"
    shipped: ClassVar[Path] = Path(__file__).with_name("tuned")
    interpreted: ClassVar[bool] = INTERPRETED

    kernel: Any
    constants: dict[str, Any]
    programs: Callable[[Tile], int]

    @property
    def name(self) -> str:
        name: str = self.kernel.__name__
        return name

    def settings(self, tile: Tile) -> tuple[dict[str, Any], dict[str, Any]]:
        """(constexprs, options) to compile and launch the kernel with."""
        options = {"num_warps": tile.warps, "num_stages": tile.stages}
        return {**self.constants, **tile.blocks}, options

    @property
    def key(self) -> str:
        return " ".join([super().key, *(f"{name}={value}" for name, value in self.constants.items())])

    def run(self, tile: Tile, memory: Mapping[FeatureMap, Tensor]) -> None:
        constants, options = self.settings(tile)
        self.kernel[(self.programs(tile),)](**self.values(memory), **constants, **options)

    def trace(self, tile: Tile, memory: Mapping[FeatureMap, Tensor]) -> None:
        replace(self, kernel=torch.library.wrap_triton(self.kernel)).run(tile, memory)

    def compile(self, tile: Tile) -> Resources | None:
        arguments = [
            MockTensor(v.dtype) if isinstance(v, (FeatureMap, Tensor)) else v for v in self.arguments.values()
        ]
        constants, options = self.settings(tile)
        try:
            made: Any = self.kernel.warmup(*arguments, grid=(1,), **constants, **options)
            made._init_handles()
        except (OutOfResources, PTXASError):
            return None
        return Resources(made.n_regs, 4 * made.n_spills, made.metadata.shared)

    @classmethod
    def compile_missing(cls, pairs: Sequence[tuple[Self, Tile]]) -> None:
        """Triton tells of each whether its cache has it: no processes are started before one is missing."""
        for done, (launch, tile) in enumerate(pairs, start=1):
            if launch._compiles(tile):
                major, minor = torch.cuda.get_device_capability()
                compile_in_parallel(pairs[done:], 10 * major + minor)
                return

    def _compiles(self, tile: Tile) -> bool:
        """Whether ``compile`` found nothing in Triton's cache."""
        knobs: Any = triton.knobs.compilation
        missing = False

        def listen(**told: Any) -> None:
            nonlocal missing
            missing = missing or not told["cache_hit"]
            if before is not None:
                before(**told)

        with _LISTENING:
            before = knobs.listener
            knobs.listener = listen
            try:
                self.compile(tile)
            finally:
                knobs.listener = before
        return missing
