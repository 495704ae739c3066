"""A network on one GPU, ready for images of any size and batch, with the kernels of a backend."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from effv2_kernels import blocks
from effv2_kernels.declaration import block_sizes
from effv2_kernels.engine import Decision, KernelRow, OneLaunchRow, Progress, TaskRow, Timing
from effv2_kernels.errors import UnavailableError
from effv2_kernels.gpu.ceilings import measure_ceilings
from effv2_kernels.gpu.choice import NetworkChoice
from effv2_kernels.gpu.graph import Graph
from effv2_kernels.gpu.kernels import Kernels
from effv2_kernels.gpu.launch import Launch, Tile
from effv2_kernels.gpu.plan import Plan
from effv2_kernels.gpu.planner import Images, Made, Planner
from effv2_kernels.gpu.resources import Resources
from effv2_kernels.gpu.timing import milliseconds, require_gpu
from effv2_kernels.inputs import check_input, check_memory

_log = logging.getLogger(__name__)

# Shapes of images that stay planned, and captured if they came twice; those used longest ago go first.
_MAX_PLANS = 16

# Whatever else runs in the process can end a capture; after so many, a shape is no longer captured.
_ATTEMPTS = 3


@dataclass
class _Planned:
    made: Made
    runs: int = 0
    graph: Graph | None = None
    attempts: int = 0  # to capture


class Engine:
    """A network of packed blocks on a GPU; calls may come from several threads and streams at once.

    ``run`` takes images (N, C, H, W) of ``dtype`` on ``device`` and returns the network's outputs: feature
    maps (N, C, H, W) in channels_last, or one tensor of logits (N, classes). For a network without head
    and without features (a single block) the output of the last block is returned.

    kernels: those of a backend, or of several that compete. dtype: float32, float16 or bfloat16. device: with
    its index; the CPU for kernels that are interpreted or emulated. cuda_graph: capture images of one shape
    as a CUDA graph when they come for the second time, where that is faster.
    """

    def __init__(
        self,
        network: blocks.Network,
        kernels: Kernels,
        dtype: torch.dtype,
        device: torch.device,
        *,
        cuda_graph: bool = True,
    ) -> None:
        self._dtype, self._device, self._cuda_graph = dtype, device, cuda_graph and device.type == "cuda"
        self._channels = block_sizes(network.blocks[0])["in"]
        self._has_head = isinstance(network.blocks[-1], blocks.Head)
        self._refuse_within_capture("packed")
        self._planner = Planner(network, kernels, dtype, device)
        self._settle()
        self._planned: OrderedDict[Images, _Planned] = OrderedDict()
        self._lock = threading.RLock()

    @property
    def in_channels(self) -> int:
        return self._channels

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def last_size(self) -> tuple[int, int] | None:
        """(rows, columns) of the input of the last call, None before the first one."""
        if not self._planned:
            return None
        image = next(reversed(self._planned.values())).made.plan.image
        return image.height, image.width

    @property
    def packed_bytes(self) -> int:
        """Bytes of the packed weights."""
        return self._planner.nbytes

    def block_shapes(self, height: int, width: int) -> list[tuple[int, int, int]]:
        """(channels, height, width) of each output; ResolutionError where an attention bias does not fit."""
        outputs = [
            launches[-1].output for launches in self._planner.outline(self._one_image(height, width)).blocks
        ]
        return [(m.channels, m.height, m.width) for m in outputs]

    def block_macs(self, height: int, width: int) -> list[int]:
        """Multiply-adds of each block for one image of a size that fits."""
        return [
            sum(launch.macs for launch in block)
            for block in self._planner.outline(self._one_image(height, width)).blocks
        ]

    def block_launches(self, height: int, width: int) -> list[list[tuple[Launch, Tile, Resources | None]]]:
        """The launches of each block, with their tiles and what those take of the GPU.

        They are those of the last batch of this size, or of one image. The scale and shift of a returned
        feature map count as part of its block. Raises ResolutionError and UnavailableError as ``run`` does.
        """
        made = self._last(height, width)
        plan = made.plan
        chosen = list(zip(plan.launches, plan.tiles, made.resources, strict=True))
        of_blocks = [[chosen.pop(0) for _ in block] for block in plan.blocks]
        for i, feature in self._planner.outputs:
            if feature is not None:
                of_blocks[i].append(chosen.pop(0))
        return of_blocks

    def _last(self, height: int, width: int) -> Made:
        """What the last batch of this size ran, or one image would."""
        with self._lock, self._on_device():
            for planned in reversed(self._planned.values()):
                plan = planned.made.plan
                whole = len(plan.blocks) == len(self._planner.packed)
                if whole and (plan.image.height, plan.image.width) == (height, width):
                    return planned.made
            self._refuse_within_capture("planned")
            return self._planner.make(self._one_image(height, width, self._precision()))

    def _one_image(self, height: int, width: int, precision: str = "ieee") -> Images:
        return Images(torch.Size((1, self._channels, height, width)), True, precision)

    def describe(self, height: int, width: int) -> list[tuple[KernelRow, ...]]:
        return [
            tuple(
                KernelRow(
                    launch.name,
                    str(tile),
                    None if resources is None else resources.registers,
                    launch.shared_bytes(tile) if resources is None else resources.shared,
                )
                for launch, tile, resources in block
            )
            for block in self.block_launches(height, width)
        ]

    def decisions(self, height: int, width: int) -> list[Decision]:
        return [
            Decision(chosen.alternative.backend, chosen.alternative.way, chosen.why)
            for chosen in self._last(height, width).plan.chosen
        ]

    def one_launch(self, height: int, width: int) -> OneLaunchRow | None:
        choice = self._last(height, width).network
        if choice is None:
            return None
        if choice.one is None:
            return OneLaunchRow(False, choice.why)
        with self._on_device():
            joined, launches = choice.one.joined, choice.one.launches
            tasks = tuple(
                TaskRow(task.launch, launches[task.launch].name, task.tile, task.raises, task.waits)
                for task in joined.tasks
            )
        return OneLaunchRow(choice.is_one, choice.why, len(launches), joined.blocks, tasks)

    def block_times(self, x: Tensor, threads: int | None) -> tuple[float, ...]:
        """See ``effv2_kernels.engine``: the sum of the medians of a block's launches, each timed by itself.

        So are those that run in one launch, of which no part can be timed.

        Raises as ``run`` does, and UnavailableError without a GPU or without memory for the largest launch.
        """
        require_gpu(self._device)
        x = self._accepted(x)
        with self._on_device():
            self._find(x)
            launches = self.block_launches(x.shape[2], x.shape[3])
            return tuple(sum(milliseconds(launch, tile) for launch, tile, _ in block) for block in launches)

    def profile(self, x: Tensor, threads: int | None, *, repeats: int, warmup: int) -> Timing:
        """Raises as ``block_times`` does."""
        times = self.block_times(x, threads)
        launches = self.block_launches(x.shape[2], x.shape[3])
        megabytes = tuple(sum(launch.bytes for launch, *_ in block) / 1e6 for block in launches)
        found = measure_ceilings(self._device, self._dtype)
        return Timing(times, megabytes, None, found.flops / 1e9, found.bytes / 1e9)

    def forget(self) -> None:
        with self._lock:
            self._planned.clear()

    def run(self, x: Tensor, threads: int | None = None, stop: int = 0) -> list[Tensor]:
        """The outputs for x, on the current stream. threads: of no meaning here.

        stop: run so many blocks only, and return the map that the last of them makes; 0 is the whole network.

        Nothing waits for the GPU but the first two calls of a shape, which compile, plan and capture.

        Raises InputError for another rank, channel count, dtype, layout or device and for empty inputs,
        ResolutionError where an attention bias does not fit, UnavailableError for the first call of a shape
        within the capture of a CUDA graph, and torch.OutOfMemoryError, after which the engine can go on.
        """
        x = self._accepted(x)
        with self._on_device():
            try:
                outputs = self._run(x, stop)
            except torch.OutOfMemoryError:
                if self._within_capture() or not self._drop_graphs():
                    raise
                outputs = []
            # Not above, where the error holds on to the memory of what failed.
            outputs = outputs or self._run(x, stop, capture=False)
        logits = self._has_head and not 0 < stop < len(self._planner.packed)
        return [y.flatten(1) for y in outputs] if logits else outputs

    def _run(self, x: Tensor, stop: int, *, capture: bool = True) -> list[Tensor]:
        planned = self._find(x, stop)
        if not capture:
            planned.attempts = _ATTEMPTS
        capturing = self._within_capture()
        is_due = planned.graph is None and planned.runs > 0 and planned.made.plan.gains_by_graph
        if self._cuda_graph and not capturing and is_due:
            self._capture(planned, x)
        planned.runs += 1
        graph = planned.graph
        # Who captures a graph around this one gets the launches, on memory that belongs to that graph.
        return planned.made.plan.run(x) if graph is None or capturing else graph.replay(x)

    def tune(self, x: Tensor, progress: Progress) -> dict[str, dict[str, float]]:
        """Measure all that can be chosen for images like x, and use the fastest from now on.

        That is the tiles of all launches, the alternatives of each block, and whether the network is one
        launch.

        Returns the milliseconds of each tile that was measured, by the key of its launch.

        Calls from other threads go on meanwhile. Raises as ``run`` does, and UnavailableError where memory
        does not suffice to measure.
        """
        x = self._accepted(x)
        require_gpu(self._device)
        with self._on_device():
            self._refuse_within_capture(f"tuned for images of {tuple(x.shape)}")
            try:
                return self._planner.tune(x, self._precision(), progress)
            finally:
                self.forget()

    def plan_for(self, x: Tensor) -> tuple[Tensor, Plan]:
        """x as the kernels read it, and its plan, with tiles; nothing is launched. Raises as ``run`` does."""
        x = self._accepted(x, traced=True)
        with self._on_device():
            return x, self._find(x).made.plan

    def choice_for(self, x: Tensor) -> tuple[Plan, NetworkChoice | None]:
        """What runs images like x, and what of single launches and one launch that was chosen from.

        None where kernels cannot be joined. Nothing is launched. Raises as ``run`` does.
        """
        x = self._accepted(x)
        with self._on_device():
            made = self._find(x).made
        return made.plan, made.network

    def _accepted(self, x: Tensor, *, traced: bool = False) -> Tensor:
        """x in one of the layouts that are planned for, with the values that it shows.

        traced: x stands for a tensor in a graph, and has no memory.
        """
        check_input(x, self._channels, self._dtype, self._device)
        if not traced:
            check_memory(x)
        x = x.detach().resolve_neg()
        if not self._planner.packed[0].reads_any_layout:
            return x.contiguous(memory_format=torch.channels_last)
        if x.is_contiguous(memory_format=torch.channels_last):
            return x
        return x.contiguous()

    def _on_device(self) -> AbstractContextManager[object]:
        return torch.cuda.device(self._device) if self._device.type == "cuda" else nullcontext()

    def _precision(self) -> str:
        """Of products in float32: what PyTorch's own switch for matrix products says."""
        allowed = torch.backends.cuda.matmul.fp32_precision == "tf32"
        return "tf32" if allowed and self._dtype is torch.float32 else "ieee"

    def _find(self, x: Tensor, stop: int = 0) -> _Planned:
        images = Images.like(x, self._precision(), stop)
        with self._lock:
            planned = self._planned.get(images)
            if planned is None:
                self._refuse_within_capture(f"planned for images of {tuple(x.shape)}")
                planned = _Planned(self._planner.make(images))
                self._settle()
                if len(self._planned) >= _MAX_PLANS:
                    self._planned.popitem(last=False)
                self._planned[images] = planned
            self._planned.move_to_end(images)
        return planned

    def _capture(self, planned: _Planned, x: Tensor) -> None:
        with self._lock:
            if planned.graph is not None or planned.attempts >= _ATTEMPTS:
                return
            planned.attempts += 1
            try:
                planned.graph = Graph(planned.made.plan, x)
            except RuntimeError as error:
                _log.warning(
                    "images of %s run without a CUDA graph, kernel by kernel: %s", tuple(x.shape), error
                )

    def _drop_graphs(self) -> bool:
        """Give back the memory that captured graphs keep, unless there is none."""
        with self._lock:
            held = [planned for planned in self._planned.values() if planned.graph is not None]
            for planned in held:
                planned.graph = None
        if held:
            torch.cuda.empty_cache()
        return bool(held)

    def _within_capture(self) -> bool:
        return self._device.type == "cuda" and torch.cuda.is_current_stream_capturing()

    def _refuse_within_capture(self, what: str) -> None:
        """What is only recorded would not be there for others."""
        if self._within_capture():
            raise UnavailableError(
                f"the model cannot be {what} while a CUDA graph is captured. Call it once with images of "
                f"this shape before."
            )

    def _settle(self) -> None:
        """Wait for what was made on the current stream, since others may read it from now on."""
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()
