"""One launch of a CUDA kernel: how it runs, and what the compiled kernel takes of the GPU at hand."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from effv2_kernels import _cuda
from effv2_kernels.errors import UnavailableError
from effv2_kernels.gpu import launch as gpu_launch
from effv2_kernels.gpu.launch import FeatureMap, LaunchError, OneLaunch
from effv2_kernels.gpu.resources import SHARED_BYTES, Resources

if TYPE_CHECKING:
    from typing_extensions import Self

FORMATS = {torch.float16: "fp16", torch.bfloat16: "bf16"}

# Errors of a kernel that failed, after which a process cannot use the GPU any more (CUDA runtime API).
_LOST = frozenset((
    "cudaErrorAssert", "cudaErrorECCUncorrectable", "cudaErrorHardwareStackError", "cudaErrorIllegalAddress",
    "cudaErrorIllegalInstruction", "cudaErrorInvalidAddressSpace", "cudaErrorInvalidPc",
    "cudaErrorLaunchFailure", "cudaErrorLaunchTimeout", "cudaErrorMisalignedAddress",
))  # fmt: skip

# The kernels count pixels in 32 bits, up to the end of a tile.
_MOST_PIXELS = 2**31 - 256

# Blocks of threads that keep an H100 busy: one for each multiprocessor.
BUSY = 132


def require_countable(m: FeatureMap) -> None:
    """Raise UnavailableError for a map of too many pixels."""
    if m.pixels > _MOST_PIXELS:
        raise UnavailableError(
            f"the cuda backend takes maps of at most {_MOST_PIXELS} pixels in all images, and this one has "
            f"{m.pixels} ({m.images} images of {m.height}x{m.width}). Give fewer images, or use "
            f"backend='triton'"
        )


def refusal(what: str, error: Exception) -> Exception:
    """What to raise for what the driver, or the emulator in its place, answered: a ``CudaError``."""
    if "cudaErrorMemoryAllocation" in str(error):
        return torch.OutOfMemoryError(f"{what}: {error}")
    if any(name in str(error) for name in _LOST):
        return LaunchError(
            f"{what} could not be launched, since a kernel before it failed: {error}. This process cannot "
            f"use the GPU any more: start it again. optimize(model, backend='triton') does without these "
            f"kernels."
        )
    return LaunchError(
        f"{what} could not be launched: {error}. Nothing of this call is to be used; the model can be called "
        f"again. Where it happens again, optimize(model, backend='triton') does without these kernels."
    )


def _build() -> str:
    """What tells this module from another of the same version: kernels are changed between versions."""
    return f"{zlib.crc32(Path(_cuda.__file__).read_bytes()):08x}"


@dataclass(frozen=True, eq=False)
class Shape(gpu_launch.Tile):
    """Which of the kernels that are compiled for a kind of step, and the fields that go with it."""

    number: int = 0
    name: str = ""

    def __str__(self) -> str:
        sizes = (f"{name}={size}" for name, size in self.blocks.items())
        return " ".join([self.name, *sizes])


def shapes(names: Sequence[str]) -> list[Shape]:
    """One for each of the kernels of a kind, in their order."""
    return [Shape({}, 8, 1, number, name) for number, name in enumerate(names)]


def fitting(
    kind: str, dtype: torch.dtype, arguments: Mapping[str, Any], candidates: Iterable[Shape]
) -> list[Shape]:
    """Of shapes, with the largest tiles first, those whose tiles the current GPU's registers and memory hold.

    In front the first that keeps a GPU busy, or else the one with the most blocks of threads: large tiles do
    least twice. kind, dtype and arguments: as of ``Launch``.
    """
    sizes = {name: value for name, value in arguments.items() if isinstance(value, (int, str))}
    most = shared_of_gpu()
    blocks = {}
    for shape in candidates:
        extent = _cuda.Step(kind, FORMATS[dtype], shape.number, {**sizes, **shape.blocks}).extent
        if extent.tiles and extent.shared_bytes <= most:
            blocks[shape] = extent.tiles
    if not blocks:
        return []
    best = next((s for s, count in blocks.items() if count >= BUSY), None)
    if best is None:
        best = max(blocks, key=blocks.__getitem__)
    return [best, *(s for s in blocks if s is not best)]


def shared_of_gpu() -> int:
    """Bytes of shared memory that a block has on the current GPU; on the largest, where there is none."""
    return _cuda.most_shared_bytes() or max(SHARED_BYTES.values())


@dataclass(frozen=True, eq=False, kw_only=True)
class Launch(gpu_launch.Launch):
    """A step of ``csrc/cuda`` on some buffers, for any of its ``tiles``, which are shapes.

    kind: of the step. dtype: what it computes in. Arguments are the step's fields: maps, weights (None where
    there are none), sizes and names. counters: a buffer among them in which blocks of threads count each
    other, all 0 at first. Raises UnavailableError for maps of too many pixels and without tiles.
    """

    backend: ClassVar[str] = "cuda"
    compiler: ClassVar[str] = f"cuda-{_cuda.VERSION}"
    build: ClassVar[str] = _build()
    shipped: ClassVar[Path] = Path(__file__).with_name("tuned")
    interpreted: ClassVar[bool] = _cuda.emulated
    trusted: ClassVar[bool] = False

    kind: str
    dtype: torch.dtype
    counters: FeatureMap | None = None
    _steps: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for m in self.maps:
            require_countable(m)
        if not self.tiles:
            raise UnavailableError(
                f"{self.name}: no tile of it fits into the {shared_of_gpu()} bytes of this GPU's shared "
                f"memory, to make {self.output.channels} channels in {self.dtype}. Use backend='triton'."
            )

    @property
    def name(self) -> str:
        return f"cuda_{self.kind}"

    @property
    def written(self) -> tuple[FeatureMap, ...]:
        return super().written if self.counters is None else (*super().written, self.counters)

    @property
    def maps(self) -> list[FeatureMap]:
        """Of the arguments, each once."""
        return list({id(v): v for v in self.arguments.values() if isinstance(v, FeatureMap)}.values())

    def step(self, tile: gpu_launch.Tile, places: Mapping[int, int]) -> Any:
        """The step for a shape. places: the address of each map, by its identity."""
        assert isinstance(tile, Shape)
        fields: dict[str, Any] = dict(tile.blocks)
        for name, value in self.arguments.items():
            if isinstance(value, FeatureMap):
                fields[name] = places[id(value)]
            elif isinstance(value, Tensor):
                fields[name] = value.data_ptr()
            elif value is not None:
                fields[name] = value
        return _cuda.Step(self.kind, FORMATS[self.dtype], tile.number, fields)

    def own_step(self, tile: gpu_launch.Tile) -> Any:
        """The step whose buffers are its maps, in their order."""
        key = str(tile)
        if key not in self._steps:
            places = {id(m): i << _cuda.OFFSET_BITS for i, m in enumerate(self.maps, start=1)}
            self._steps[key] = self.step(tile, places)
        return self._steps[key]

    def run(self, tile: gpu_launch.Tile, memory: Mapping[FeatureMap, Tensor]) -> None:
        device = memory[self.output].device
        if self.counters is not None:
            memory[self.counters].zero_()
        stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
        try:
            _cuda.launch(self.own_step(tile), [memory[m].data_ptr() for m in self.maps], stream)
        except _cuda.CudaError as error:
            raise refusal(f"{self.name} ({tile})", error) from error

    def trace(self, tile: gpu_launch.Tile, memory: Mapping[FeatureMap, Tensor]) -> None:
        # Blocks that may have such launches stay one opaque op: see ``ops.decomposition.runs_kernels``.
        raise NotImplementedError("the CUDA kernels are no operators of Torch's compiler")

    def shared_bytes(self, tile: gpu_launch.Tile) -> int | None:
        extent = self.own_step(tile).extent
        return int(extent.shared_bytes) if extent.tiles else None

    @property
    def tile_in_one(self) -> gpu_launch.Tile | None:
        """The first of its shapes that the one launch has (``csrc/cuda/schedule.h``) and the GPU can do."""
        if self.counters is not None:  # which nobody would clear
            return None
        most = shared_of_gpu() - _cuda.NETWORK_BYTES
        for tile in self.tiles:
            step = self.own_step(tile)
            if _cuda.has_shape(step) and step.extent.tiles and step.extent.shared_bytes <= most:
                return tile
        return None

    @classmethod
    def join(
        cls, launches: Sequence[Self], image: FeatureMap, outputs: Sequence[FeatureMap], device: torch.device
    ) -> OneLaunch:
        from effv2_kernels.cuda.network import OneLaunch as Network

        return Network(launches, image, outputs, device, _multiprocessors(device))

    def compile(self, tile: gpu_launch.Tile) -> Resources | None:
        step = self.own_step(tile)
        if not step.extent.tiles or step.extent.shared_bytes > shared_of_gpu():
            return None
        try:
            registers, stack = _cuda.resources(step)
        except _cuda.CudaError as error:
            raise refusal(f"{self.name} ({tile})", error) from error
        return Resources(registers, stack, step.extent.shared_bytes)

    @classmethod
    def compile_missing(cls, pairs: Sequence[tuple[Self, gpu_launch.Tile]]) -> None:
        """They are all compiled."""


def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 4
    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return count
