"""Time networks on the device at hand, whole and block by block."""

from __future__ import annotations

import time
from dataclasses import dataclass
from importlib.metadata import version
from statistics import median

import torch
from torch import Tensor

import effv2_kernels
from effv2_kernels import devices
from effv2_kernels.backends import TORCH_DTYPES
from effv2_kernels.engine import Engine
from effv2_kernels.families.efficientformer_v2.architecture import Architecture
from effv2_kernels.families.efficientformer_v2.model import EfficientFormerV2
from effv2_kernels.model import OptimizedModel
from effv2_kernels.search.latency.kept import room_in_memory
from effv2_kernels.search.latency.table import Device
from effv2_kernels.search.latency.task import Task

# Milliseconds of calls for one reading: less is lost in the clock, more lets the machine drift meanwhile.
_TURN = 8.0
_MOST_CALLS = 25


@dataclass(frozen=True)
class Runner:
    """A network on a device. Both return milliseconds, medians of ``calls`` runs."""

    engine: Engine
    images: Tensor
    threads: int | None
    calls: int = 1

    def whole(self) -> float:
        self._run()  # its weights and code come back to the caches, as where it is called again and again
        return median(self._run() for _ in range(self.calls))

    def blocks(self) -> tuple[float, ...]:
        self.engine.block_times(self.images, self.threads)
        runs = [self.engine.block_times(self.images, self.threads) for _ in range(self.calls)]
        return tuple(median(times) for times in zip(*runs, strict=True))

    def _run(self) -> float:
        begin = time.perf_counter()
        self.engine.run(self.images, self.threads)
        if self.images.is_cuda:
            torch.cuda.synchronize(self.images.device)
        return 1e3 * (time.perf_counter() - begin)


def _available(name: str) -> torch.device:
    device = devices.named(name, "a device is cpu, cuda or cuda:1")
    devices.require(device, "networks are timed", "Take cpu, or the table of another machine.")
    return device


class Timer:
    """Networks of any sizes with random weights, for images of one size, as ``optimize`` runs them.

    img_size: (rows, columns). device, dtype, threads and isa are those of ``optimize``, which see for what is
    raised; for a device that is none InputError, for one that is not there UnavailableError.
    """

    def __init__(
        self,
        img_size: tuple[int, int],
        *,
        in_channels: int = 3,
        classes: int = 1000,
        batch: int = 1,
        device: str = "cpu",
        dtype: str = "fp32",
        threads: int | None = None,
        isa: str | None = None,
    ) -> None:
        self.task = Task(img_size, in_channels, classes)
        self._batch, self._where, self._dtype = batch, _available(device), dtype
        self._threads, self._isa = threads, isa
        self.device = self._described()

    def _described(self) -> Device:
        versions = {"effv2_kernels": effv2_kernels.__version__, "torch": version("torch")}
        if self._where.type == "cuda":
            name = torch.cuda.get_device_name(self._where)
            return Device(name, "auto", self._dtype, None, self._batch, versions)
        from effv2_kernels import cpu

        threads = min(self._threads or torch.get_num_threads(), cpu.native().usable_cpus())
        isa = self._isa or cpu.default_isa()
        return Device(cpu.native().cpu_name(), isa, self._dtype, threads, self._batch, versions)

    def room(self) -> float:
        """Bytes that networks can still take where they run."""
        if self._where.type == "cuda":
            return float(torch.cuda.mem_get_info(self._where)[0])
        return room_in_memory()

    def runner(self, architecture: Architecture) -> Runner:
        """A network of these sizes, ready to run."""
        model = EfficientFormerV2(
            architecture,
            img_size=self.task.img_size,
            in_channels=self.task.in_channels,
            num_classes=self.task.classes,
            layer_scale_init=None,
        ).eval()
        # A trial run beside the original would take longer than all else here, for a model of our own.
        model.to(self._where)
        fast = effv2_kernels.optimize(model, dtype=self._dtype, isa=self._isa, verify=False)
        assert isinstance(fast, OptimizedModel)
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(self._batch, self.task.in_channels, *self.task.img_size, generator=generator)
        runner = Runner(fast.engine, images.to(self._where, TORCH_DTYPES[self._dtype]), self._threads)
        for _ in range(3):  # plans, memory, and on a GPU a graph
            once = runner.whole()
        return Runner(
            runner.engine, runner.images, self._threads, max(1, min(_MOST_CALLS, round(_TURN / once)))
        )
