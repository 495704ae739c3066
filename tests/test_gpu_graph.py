"""Capturing a plan as a CUDA graph, with streams and graphs that only say what happens to them."""

import contextlib
import threading
import types
from functools import partial

import pytest
import torch

from effv2_kernels.gpu import graph as graphs


class FakeCUDA:
    """Two GPUs; ``error`` is raised where a capture begins or ends."""

    def __init__(self, monkeypatch):
        self.device, self.error, self.made, self.under_way, self.waited = 0, "", [], 0, 0
        self.current = {i: self.stream(i) for i in range(2)}
        monkeypatch.setattr(graphs, "_streams", {})
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: self.current[self.device])
        monkeypatch.setattr(torch.cuda, "set_stream", self.set_stream)
        monkeypatch.setattr(torch.cuda, "Stream", lambda priority: self.stream(self.device))
        monkeypatch.setattr(torch.cuda, "graph", self.graph)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: types.SimpleNamespace(replay=lambda: None))
        monkeypatch.setattr(torch.cuda, "Event", lambda: self)
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 7))
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: self.within)
        self.within, self.calls = False, []
        for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
            call = partial(self.allocator, name)
            monkeypatch.setattr(torch._C, name, call, raising=False)

    def stream(self, device):
        return types.SimpleNamespace(device_index=device, wait_event=lambda event: None)

    def set_stream(self, stream):
        self.device = stream.device_index
        self.current[self.device] = stream

    @contextlib.contextmanager
    def graph(self, graph, *, pool, stream, capture_error_mode):
        """Like PyTorch's, which stays on the stream of the capture where that fails."""
        before = self.current[self.device]
        self.set_stream(stream)
        self.made.append((stream, capture_error_mode))
        if self.error == "begin":
            raise RuntimeError("operation not permitted when stream is capturing")
        self.under_way += 1
        assert self.under_way == 1, "two captures at once"
        try:
            yield
        finally:
            self.under_way -= 1
        if self.error == "end":
            raise RuntimeError("operation failed due to a previous error during capture")
        self.set_stream(before)

    def allocator(self, name, device, pool):
        if not self.error:
            raise RuntimeError("not currently recording to mempool_id")
        self.calls.append((name, device, pool))

    def synchronize(self):
        self.waited += 1

    def record(self, stream):
        assert stream is self.current[self.device]
        self.recorded = True


@pytest.fixture
def cuda(monkeypatch):
    return FakeCUDA(monkeypatch)


def test_each_gpu_captures_on_a_stream_of_its_own(cuda):
    for device in (0, 1, 0):
        cuda.device = device
        before = cuda.current[device]
        with graphs.captured(None):
            assert cuda.current[device] is not before
        assert cuda.current[device] is before
    streams = [stream for stream, _ in cuda.made]
    assert [stream.device_index for stream in streams] == [0, 1, 0]
    assert streams[0] is streams[2]
    assert {mode for _, mode in cuda.made} == {"thread_local"}


@pytest.mark.parametrize("error", ["begin", "end"])
def test_a_failed_capture_leaves_the_stream_as_it_was(cuda, error):
    before, cuda.error = cuda.current[0], error
    with pytest.raises(RuntimeError, match="captur"), graphs.captured(None):
        pass
    assert cuda.current[0] is before
    assert cuda.calls == [("_cuda_endAllocateToPool", 0, (0, 7)), ("_cuda_releasePool", 0, (0, 7))]
    cuda.error = ""
    with graphs.captured(None):
        pass


def test_what_fails_within_a_capture_is_said(cuda):
    """PyTorch has ended its allocation then."""
    before = cuda.current[0]
    with pytest.raises(torch.OutOfMemoryError), graphs.captured(None):
        raise torch.OutOfMemoryError("CUDA out of memory")
    assert cuda.current[0] is before
    assert cuda.calls == []


def test_one_capture_at_a_time(cuda, monkeypatch):
    inside, go_on = threading.Event(), threading.Event()

    def first():
        with graphs.captured(None):
            inside.set()
            go_on.wait(10)

    def second():
        with graphs.captured(None):
            pass

    threads = [threading.Thread(target=target) for target in (first, second)]
    threads[0].start()
    inside.wait(10)
    threads[1].start()
    threads[1].join(0.1)
    assert threads[1].is_alive()
    assert len(cuda.made) == 1
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert len(cuda.made) == 2


class FakePlan:
    """images are not written yet when a graph is captured, and may be NaN."""

    def for_graph(self, images):
        return partial(self.run, images)

    def run(self, images):
        self.read, self.written = images, torch.full_like(images, 2.0)
        return [self.written]


def test_replays_on_memory_of_its_own(cuda):
    plan = FakePlan()
    graph = graphs.Graph(plan, torch.zeros(2, 3))
    images = torch.ones(2, 3)
    (y,) = graph.replay(images)
    assert torch.equal(plan.read, images)
    assert plan.read.data_ptr() != images.data_ptr()
    assert torch.equal(y, plan.written)
    assert y.data_ptr() != plan.written.data_ptr()
    assert cuda.recorded


def test_a_replay_that_fails_is_recorded_too(cuda):
    graph = graphs.Graph(FakePlan(), torch.zeros(2, 3))
    with pytest.raises(RuntimeError):
        graph.replay(torch.zeros(4, 5))
    assert cuda.recorded


def test_memory_is_given_back_after_the_last_replay(cuda):
    graph = graphs.Graph(FakePlan(), torch.zeros(2, 3))
    assert cuda.waited == 0
    del graph
    assert cuda.waited == 1
    graph = graphs.Graph(FakePlan(), torch.zeros(2, 3))
    cuda.within = True  # where nobody may wait
    del graph
    assert cuda.waited == 1
