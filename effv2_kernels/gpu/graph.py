"""A plan captured as one CUDA graph: the GPU starts kernel after kernel without asking the CPU."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor

from effv2_kernels.gpu.plan import Plan

# One capture at a time: it begins by waiting for the whole GPU, which would end one under way elsewhere.
_CAPTURES = threading.Lock()
_streams: dict[int, torch.cuda.Stream] = {}


@contextmanager
def captured(graph: torch.cuda.CUDAGraph) -> Iterator[None]:
    """What is launched on the current GPU inside becomes ``graph``, and nothing of it runs.

    On a stream of its own for each GPU, while ``torch.cuda.graph`` has one for all, on the GPU that captured
    first. The stream that was current is so again afterwards, also where the capture fails.

    Raises RuntimeError (torch.OutOfMemoryError among them) where the GPU cannot capture now.
    """
    before = torch.cuda.current_stream()
    with _CAPTURES:
        if before.device_index not in _streams:
            # PyTorch hands out a few streams in turn, and what others launch on this one would be captured as
            # well. Hardly anybody else has one of this priority, which the graph's kernels keep.
            _streams[before.device_index] = torch.cuda.Stream(priority=-1)
        pool = torch.cuda.graph_pool_handle()
        stream = _streams[before.device_index]
        try:
            # Other threads go on using the GPU meanwhile.
            with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                yield
        except BaseException:
            _end_allocation(before.device_index, pool)
            raise
        finally:
            torch.cuda.set_stream(before)


def _end_allocation(device: int, pool: Any) -> None:
    """Where a capture could not begin or end, PyTorch would go on allocating as if it were under way.

    Raises nothing: where PyTorch has ended it, there is nothing to end.
    """
    with suppress(Exception):
        torch._C._cuda_endAllocateToPool(device, pool)
        torch._C._cuda_releasePool(device, pool)


class Graph:
    """Replays a plan that has run before, on memory of its own; calls may come from several threads.

    images: a contiguous or channels_last tensor as planned; only its shape, layout and values are used.

    Raises RuntimeError (torch.OutOfMemoryError among them) where the GPU cannot capture now.
    """

    def __init__(self, plan: Plan, images: Tensor) -> None:
        self._lock = threading.Lock()
        self._done = torch.cuda.Event()
        self._graph = torch.cuda.CUDAGraph()
        # Tensors of inference mode could not be written outside of it.
        with torch.inference_mode(False), torch.no_grad():
            self._images = torch.empty_like(images, memory_format=torch.preserve_format)
            run = plan.for_graph(self._images)
            with captured(self._graph):
                self._outputs = run()
            # Memory that was made before the capture lives as long as the graph.
            self._run = run

    def replay(self, images: Tensor) -> list[Tensor]:
        """The outputs for ``images``, on the current stream and in memory of their own."""
        with self._lock:
            stream = torch.cuda.current_stream()
            # Another stream may still be reading what the last replay wrote.
            stream.wait_event(self._done)
            try:
                self._images.copy_(images)
                self._graph.replay()
                return [y.clone() for y in self._outputs]
            finally:
                self._done.record(stream)

    def __del__(self) -> None:
        # Whoever gets this memory next must not meet a replay that is under way. To wait within a capture
        # would end that.
        with suppress(Exception):
            if not torch.cuda.is_current_stream_capturing():
                self._done.synchronize()
