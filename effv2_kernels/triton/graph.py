"""A plan captured as one CUDA graph: the GPU starts kernel after kernel without asking the CPU."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch
from torch import Tensor

from effv2_kernels.triton.plan import Plan

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
            # PyTorch hands out a few streams in turn. Hardly anybody else has one of this priority.
            _streams[before.device_index] = torch.cuda.Stream(priority=-1)
        try:
            # Other threads go on using the GPU meanwhile.
            with torch.cuda.graph(
                graph, stream=_streams[before.device_index], capture_error_mode="thread_local"
            ):
                yield
        finally:
            torch.cuda.set_stream(before)


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
            with captured(self._graph):
                self._outputs = plan.run(self._images)

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
        # Whoever gets this memory next must not meet a replay that is under way.
        with suppress(Exception):
            self._done.synchronize()
