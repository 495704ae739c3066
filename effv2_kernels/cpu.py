"""The bridge to the compiled CPU engine: blocks go in as NumPy views, tensors as addresses and strides."""

from __future__ import annotations

import os
import statistics
from functools import cache
from math import prod
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from effv2_kernels import blocks, memory
from effv2_kernels.backends import TORCH_DTYPES, known_isas, require_kernels, why_not_isa
from effv2_kernels.engine import Decision, KernelRow, Progress, Timing
from effv2_kernels.errors import InputError, ModelError, UnavailableError, UnknownNameError
from effv2_kernels.inputs import check_input, check_memory, fitting_sizes, misfit

if TYPE_CHECKING:
    from effv2_kernels import _native

# Sizes of images whose output shapes are remembered by a network; more than anyone alternates between.
_MAX_PLANS = 64

# Of measuring what the processor can do at most.
_PEAK_MILLISECONDS = 100.0

_CPU = torch.device("cpu")

# The largest of what the compiled module counts rows and columns in.
_MOST = 2**31 - 1


@cache
def native() -> Any:
    """The compiled module. Raises UnavailableError where it was not built."""
    try:
        from effv2_kernels import _native
    except ImportError as error:
        raise UnavailableError(
            f"the compiled engine effv2_kernels._native cannot be imported ({error}); "
            f"build it with 'pip install .' in the project's folder."
        ) from error
    module: ModuleType = _native
    return module


def forced_isa() -> str | None:
    """The value of EFFV2_FORCE_ISA; None where it is unset or empty."""
    return os.environ.get("EFFV2_FORCE_ISA") or None


def default_isa() -> str:
    """EFFV2_FORCE_ISA, or the best ISA of this machine.

    Raises UnknownNameError or UnavailableError for a bad value of the variable.
    """
    engine = native()
    try:
        name: str = engine.default_isa()
    except engine.NativeError as error:
        forced = forced_isa()
        if forced is not None and forced not in known_isas():
            raise UnknownNameError.of("ISA in EFFV2_FORCE_ISA", forced, known_isas()) from error
        why_not = str(error) if forced is None else why_not_isa(forced)
        raise UnavailableError(f"EFFV2_FORCE_ISA={forced}: {why_not}.") from error
    return name


def refusal(block: blocks.Block) -> str | None:
    """What of a block this engine has no kernel for, None where it runs it: whatever its options are."""
    return None if block.kind in native().kinds() else block.kind


class Engine:
    """A network of packed blocks on the CPU; calls may come from several threads at once.

    ``run`` takes images (N, C, H, W) of its dtype, of any strides, and returns the network's outputs in the
    same dtype: feature maps (N, C, H, W) in channels_last, or one tensor of logits (N, classes). For a
    network without head and without features (a single block) the output of the last block is returned.

    dtype: "fp32"; "bf16" where the ISA keeps weights and maps in it, and computes in float32; or "fp16" where
        it computes in that.

    Raises UnavailableError or UnknownNameError for an ISA that cannot run, UnavailableError for a block that
    there is no kernel for, and ModelError for a network that the engine does not take.
    """

    def __init__(self, network: blocks.Network, isa: str | None = None, dtype: str = "fp32") -> None:
        engine = native()
        self._dtype = TORCH_DTYPES[dtype]
        require_kernels("cpu", network.blocks)
        features = features_of(network)
        self._has_head = isinstance(network.blocks[-1], blocks.Head)
        weight_bytes = sum(t.nbytes for block in network.blocks for t in block.tensors().values())
        try:
            with memory.needed_to(f"pack {memory.amount(weight_bytes)} of weights"):
                self._network: _native.Network = engine.Network(isa or default_isa(), weight_bytes, dtype)
                add_blocks(self._network, network)
        except engine.NativeError as error:
            raise ModelError(f"the cpu engine does not take this network: {error}") from error
        self._outputs = [len(network.blocks) - 1] if self._has_head else sorted(features)
        self._sizes = fitting_sizes(network)
        self._channels: int = self._network.in_channels
        # by shape of the images and number of blocks
        self._plans: dict[tuple[torch.Size, int], list[tuple[int, ...]]] = {}

    @property
    def isa(self) -> str:
        return self._network.isa

    @property
    def in_channels(self) -> int:
        return self._channels

    @property
    def last_size(self) -> tuple[int, int] | None:
        """(rows, columns) of the input whose sizes were planned last, None before the first call."""
        planned = next(reversed(self._plans), None)
        return None if planned is None else (planned[0][2], planned[0][3])

    @property
    def packed_bytes(self) -> int:
        """Bytes of the packed weights."""
        return self._network.packed_bytes

    def block_shapes(self, height: int, width: int) -> list[tuple[int, int, int]]:
        """(channels, height, width) of each output; ResolutionError where an attention bias does not fit."""
        try:
            return self._network.block_shapes(min(height, _MOST), min(width, _MOST))  # refused in any case
        except native().NativeError as error:
            if self._sizes is None:
                raise InputError(f"images of {height}x{width} cannot run: {error}") from error
            raise misfit(self._sizes, height, width) from error

    def block_macs(self, height: int, width: int) -> list[int]:
        """Multiply-adds of each block for one image of a size that fits."""
        return self._network.block_macs(height, width)

    def run(self, x: Tensor, threads: int | None = None, stop: int = 0) -> list[Tensor]:
        """The outputs for x: (N, C, H, W) on the CPU. threads: None is ``torch.get_num_threads()``.

        stop: run so many blocks only, and return the map that the last of them makes; 0 is the whole network.

        Raises InputError for another rank, channel count, dtype, layout or device, for empty inputs and for
        tensors without the memory that they show, and for values beyond what fp16 holds; ResolutionError
        where an attention bias does not fit, and UnavailableError where there is not enough memory.
        """
        try:
            x, outputs = self._prepare(x, stop)
            self._network.run(
                x.data_ptr(),
                x.shape,
                x.stride(),
                [y.data_ptr() for y in outputs],
                threads or torch.get_num_threads(),
                stop,
            )
        except (native().NativeError, MemoryError, RuntimeError) as error:
            self._refuse(error, x, stop)
            raise
        return outputs

    def block_times(self, x: Tensor, threads: int | None) -> tuple[float, ...]:
        """See ``effv2_kernels.engine``; ``threads`` at most as many as there are processors."""
        try:
            x, outputs = self._prepare(x)
            addresses = [y.data_ptr() for y in outputs]
            seconds = self._network.profile(
                x.data_ptr(), x.shape, x.stride(), addresses, self._threads(threads)
            )
        except (native().NativeError, MemoryError, RuntimeError) as error:
            self._refuse(error, x)
            raise
        return tuple(1e3 * time for time in seconds)

    def profile(self, x: Tensor, threads: int | None, *, repeats: int, warmup: int) -> Timing:
        """See ``effv2_kernels.engine``; ``threads`` at most as many as there are processors."""
        threads = self._threads(threads)
        runs = [self.block_times(x, threads) for _ in range(warmup + repeats)][warmup:]
        peak = native().measure_peak(self.isa, threads, _PEAK_MILLISECONDS)
        milliseconds = tuple(statistics.median(times) for times in zip(*runs, strict=True))
        return Timing(milliseconds, (None,) * len(milliseconds), threads, peak)

    def _threads(self, asked: int | None) -> int:
        usable: int = native().usable_cpus()
        return min(asked or torch.get_num_threads(), usable)

    def describe(self, height: int, width: int) -> list[tuple[KernelRow, ...]]:
        return [()] * len(self.block_macs(height, width))

    def decisions(self, height: int, width: int) -> list[Decision]:
        return []

    def one_launch(self, height: int, width: int) -> None:
        return None

    def tune(self, x: Tensor, progress: Progress) -> NoReturn:
        raise UnavailableError(
            "only kernels on a GPU are tuned, and this model is on the cpu, where there is nothing to choose."
        )

    def forget(self) -> None:
        self._plans.clear()

    def _prepare(self, x: Tensor, stop: int = 0) -> tuple[Tensor, list[Tensor]]:
        if x.dtype is not self._dtype or not x.is_cpu or x.layout is not torch.strided:
            check_input(x, self._channels, self._dtype, _CPU)
        shapes = self._plans.get((x.shape, stop))
        if shapes is None:
            shapes = self._plan(x, stop)
        check_memory(x)
        if x.is_neg():  # the address gives the values before the lazy negation
            x = x.resolve_neg()
        outputs = [
            torch.empty(
                s,
                dtype=self._dtype,
                device="cpu",
                memory_format=torch.channels_last if len(s) == 4 else torch.contiguous_format,
            )
            for s in shapes
        ]
        return x, outputs

    def _plan(self, x: Tensor, stop: int) -> list[tuple[int, ...]]:
        check_input(x, self._channels, self._dtype, _CPU)
        made = self.block_shapes(x.shape[2], x.shape[3])
        wanted = [stop - 1] if stop else self._outputs
        logits = self._has_head and not 0 < stop < len(made)
        shapes: list[tuple[int, ...]] = [
            (x.shape[0], made[i][0]) if logits else (x.shape[0], *made[i]) for i in wanted
        ]
        if len(self._plans) >= _MAX_PLANS:
            self._plans.clear()
        self._plans[x.shape, stop] = shapes
        return shapes

    def _refuse(self, error: Exception, x: Tensor, stop: int = 0) -> None:
        """Raise, in the package's own types, what stopped the network while images x ran, if it is known."""
        if isinstance(error, native().NativeError):
            raise InputError(str(error)) from error
        if memory.lacks(error):
            shapes = self._plans.get((x.shape, stop), [])
            outputs = sum(map(prod, shapes)) * self._dtype.itemsize
            taken = f", whose outputs alone take {memory.amount(outputs)}" if outputs else ""
            raise memory.refusal(
                f"run images of {tuple(x.shape)}{taken}", "give smaller or fewer ones"
            ) from error


def features_of(network: blocks.Network) -> dict[int, blocks.Feature]:
    """What the network returns, by the block that makes it: the last one's output where it has neither."""
    last = len(network.blocks) - 1
    if network.features or isinstance(network.blocks[last], blocks.Head):
        return {f.block: f for f in network.features}
    return {last: blocks.Feature(last)}


def add_blocks(to: Any, network: blocks.Network) -> None:
    """Add the blocks and features of a network to one of the compiled module's."""
    features = features_of(network)
    for i, block in enumerate(network.blocks):
        to.add(block.kind, _arrays(block.tensors()), block.options())
        if i not in features:
            continue
        scale, shift = features[i].scale, features[i].shift
        if scale is None or shift is None:
            to.add_feature()
        else:
            to.add_feature(**_arrays({"scale": scale, "shift": shift}))


def _arrays(tensors: dict[str, Tensor]) -> dict[str, Any]:
    for t in tensors.values():
        check_memory(t)
    return {name: t.detach().contiguous().numpy() for name, t in tensors.items()}
