"""The same bits for any number of threads and place in a batch; fork, concurrent callers, the GIL."""

import multiprocessing
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from checks import TARGETS, as_network, block_case, run_engine, seeded
from conftest import THREADS
from models import FAMILIES, SMALL, SMALL_MOBILE

from effv2_kernels import blocks, cpu, optimize, shapes, sources

SHAPES = [
    shapes.stem(24, 21, 34),
    shapes.ffn(40, 132, 13, 11),
    shapes.ffn(24, 72, 1, 5),
    shapes.ffn(24, 800, 14, 13),  # chunks of other sizes for larger teams
    shapes.ffn(24, 72, 12, 9, out=40, kernel=5, stride=2, residual=0),
    shapes.attention(24, 7, 9),
    shapes.attention(24, 17, 11, stride=2),
    shapes.attention(24, 16, 17),
    shapes.conv(24, 40, 15, 10, stride=2),
    shapes.conv(24, 72, 9, 10, kernel=1, activation="relu6"),
    shapes.ffn(24, 72, 15, 12, out=40, stride=2, residual=0, activation="relu6"),
    shapes.ffn(40, 40, 13, 11, out=24, residual=0, activation="relu6", without=("fc1",)),
    shapes.attention_downsample(24, 40, 13, 10),
    shapes.head(40, 37, 7, 5),
]


@pytest.fixture(autouse=True)
def threads_of_torch():
    """As a user has them; a process that shares the cores with others has fewer, see conftest."""
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


forks = pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="this system cannot fork")


def test_every_block_is_among_them():
    missing = set(blocks.BLOCK_TYPES) - {shape.kind for shape in SHAPES}
    assert not missing, f"SHAPES of {__file__} has none of {missing}: add one with work for several threads"


def model_and_images(batch=2, spec=SMALL[0], number=0):
    g = seeded(20 + number)
    return spec.build(g), spec.images(g, batch)


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_large_teams_of_a_block(shape, target, many_processors):
    block, x, _ = block_case(shape, 5, dtype=target.torch_dtype)
    engine = target.engine(as_network(block))
    expected = engine.run(x, 1)
    for threads, images in ((8, 1), (16, 3), (32, 1), (32, 5)):
        (y,) = engine.run(x[:images], threads)
        assert torch.equal(y, expected[0][:images]), f"{threads} threads, {images} images"


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("spec", FAMILIES, ids=lambda spec: spec.name)
def test_large_teams_of_a_network(target, spec, many_processors):
    model, images = model_and_images(3, spec)
    engine, images = target.engine(sources.read(model)), target.kept(images)
    (expected,) = engine.run(images, 1)
    for threads in (8, 24, 32):
        assert torch.equal(engine.run(images, threads)[0], expected)
        assert torch.equal(engine.run(images[:1], threads)[0], expected[:1])


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_blocks_do_not_depend_on_threads_or_place(shape, target):
    block, x, _ = block_case(shape, 5, dtype=target.torch_dtype)
    engine = target.engine(as_network(block))
    (expected,) = run_engine(engine, x, 1)
    for threads in (2, 3, 4, 5, 64):
        (y,) = run_engine(engine, x, threads)
        assert torch.equal(y, expected), f"{threads} threads"
    for i in range(5):
        for threads in (1, 2, 3):
            (alone,) = run_engine(engine, x[i : i + 1], threads)
            assert torch.equal(alone[0], expected[i]), f"image {i} alone with {threads} threads"
    order = torch.tensor([3, 0, 4])
    (reordered,) = run_engine(engine, x[order], 2)
    assert torch.equal(reordered, expected[order])


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("spec", [*SMALL, *SMALL_MOBILE], ids=lambda spec: spec.name)
def test_networks_do_not_depend_on_threads_or_place(spec, target):
    model, images = model_and_images(7, spec)
    engine, images = target.engine(sources.read(model)), target.kept(images)
    (expected,) = engine.run(images, 1)
    for threads in (2, 3, 5):
        for batch in (1, 2, 3, 5, 7):
            (y,) = engine.run(images[7 - batch :], threads)
            assert torch.equal(y, expected[7 - batch :]), f"batch {batch}, {threads} threads"


def test_threads_are_those_of_torch(monkeypatch):
    """Asked at each call, unless they were given to optimize()."""
    model, images = model_and_images()
    free, fixed = optimize(model), optimize(model, threads=3)
    asked = []

    class Spy:
        def __init__(self, network):
            self.network = network

        def __getattr__(self, name):
            return getattr(self.network, name)

        def run(self, *args):
            asked.append(args[4])  # behind address, shape, strides and outputs
            self.network.run(*args)

    for fast in (free, fixed):
        monkeypatch.setattr(fast.engine, "_network", Spy(fast.engine._network))
    for threads in (1, 2, 7):
        monkeypatch.setattr(torch, "get_num_threads", lambda n=threads: n)
        free(images)
        fixed(images)
    assert asked == [1, 3, 2, 3, 7, 3]


def _run_in_child(fast, images, queue):
    queue.put(fast(images).numpy())


@forks
@pytest.mark.parametrize("threads", [1, 2])
def test_survives_fork(threads):
    """A child of a process whose threads have run computes the same, with threads of its own."""
    model, images = model_and_images()
    fast = optimize(model, threads=threads)
    expected = fast(images)  # the parent's threads exist now; the child has none of them
    context = multiprocessing.get_context("fork")
    for _ in range(2):
        queue = context.Queue()
        child = context.Process(target=_run_in_child, args=(fast, images, queue))
        child.start()
        try:
            assert torch.equal(torch.from_numpy(queue.get(timeout=60)), expected)
            child.join(60)
            assert child.exitcode == 0
        finally:
            child.kill()
        assert torch.equal(fast(images), expected)


class _Embedded(torch.utils.data.Dataset):
    """Runs a model in the workers, as a feature extractor in a data pipeline does."""

    def __init__(self, fast, images):
        self.fast, self.images = fast, images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.fast(self.images[index][None])[0]


@forks
def test_works_in_data_loader_workers():
    model, images = model_and_images(6)
    fast = optimize(model)
    expected = fast(images)
    loader = torch.utils.data.DataLoader(
        _Embedded(fast, images), batch_size=2, num_workers=2, multiprocessing_context="fork", timeout=60
    )
    assert torch.equal(torch.cat(list(loader)), expected)


def test_several_python_threads_on_one_model_and_on_several():
    cases = []
    for i, spec in enumerate([*SMALL[:2], *SMALL_MOBILE[:1]]):
        model, images = model_and_images(3, spec, i)
        fast = optimize(model)
        cases.append((fast, images, fast(images)))
    jobs = [(cases[i % 3], 1 + i % 3) for i in range(60)]

    def work(job):
        (fast, images, expected), batch = job
        return torch.equal(fast(images[:batch]), expected[:batch])

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(work, jobs, timeout=120))


def test_first_calls_from_several_python_threads():
    """Nobody has packed the weights or started threads yet."""
    model, images = model_and_images()
    expected = optimize(model)(images)
    for _ in range(5):
        fast = optimize(model)
        fast._engine = None
        start = threading.Barrier(4)

        def first(fast=fast, start=start):
            start.wait(30)
            return fast(images)

        with ThreadPoolExecutor(4) as pool:
            for result in [pool.submit(first) for _ in range(4)]:
                assert torch.equal(result.result(60), expected)


@pytest.mark.alone
def test_the_gil_is_released():
    """Python goes on while the engine runs: this thread wakes up again and again."""
    shape = shapes.ffn(96, 384, 64, 64)
    block, x, _ = block_case(shape)
    engine = cpu.Engine(as_network(block), "scalar")
    images = x.expand(40, -1, -1, -1)
    began, ended = threading.Event(), []

    def call():
        began.set()
        engine.run(images, 1)
        ended.append(time.perf_counter())

    caller = threading.Thread(target=call)
    start = time.perf_counter()
    caller.start()
    assert began.wait(30)
    wakes = []
    while caller.is_alive():
        time.sleep(0.002)
        wakes.append(time.perf_counter())
    caller.join()
    during = sum(wake < ended[0] for wake in wakes)
    assert ended[0] - start > 0.1, "the call was too short to tell"
    assert during >= 10, f"woke up {during} times in {ended[0] - start:.3f} s"


@pytest.mark.skipif(sys.platform != "linux", reason="counts the threads that Linux lists")
def test_threads_are_not_left_behind():
    """Calls, models and Python threads come and go; the number of native threads stays bounded."""
    import gc
    import os

    def count():
        return len(os.listdir("/proc/self/task"))

    model, images = model_and_images()

    def once():
        fast = optimize(model)
        fast(images)

    for _ in range(3):
        worker = threading.Thread(target=once)
        worker.start()
        worker.join()
    before = count()
    for _ in range(30):
        worker = threading.Thread(target=once)
        worker.start()
        worker.join()
    gc.collect()
    assert count() <= before + 4
