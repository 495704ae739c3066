"""A plan captured as one CUDA graph: the GPU starts kernel after kernel without asking the CPU."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from effv2_kernels.triton.plan import Plan


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
            # Other threads go on using the GPU meanwhile.
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._outputs = plan.run(self._images)

    def replay(self, images: Tensor) -> list[Tensor]:
        """The outputs for ``images``, on the current stream and in memory of their own."""
        with self._lock:
            stream = torch.cuda.current_stream()
            # Another stream may still be reading what the last replay wrote.
            stream.wait_event(self._done)
            self._images.copy_(images)
            self._graph.replay()
            outputs = [y.clone() for y in self._outputs]
            self._done.record(stream)
        return outputs
