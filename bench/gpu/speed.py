"""One network at one batch in fp16 at 224x224: ours beside eager, eager in a CUDA graph and torch.compile.

Every contestant is called as its users call it, in inference mode, on channels_last images that take turns
and together exceed the level-2 cache; a rival that takes longer than SLOW is timed by itself. cuDNN measures
its algorithms (``cudnn.benchmark``). At batch 1 eager mostly measures how fast Python queues kernels; "eager
graph" is the same without that. Ours and eager's graph copy their input in and their output out;
torch.compile copies the input into its graph and returns the graph's own memory.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

import effv2_kernels
from bench.gpu import timing
from bench.gpu.models import build, keep_biases
from bench.gpu.turns import Turns
from effv2_kernels.gpu.ceilings import Ceilings
from effv2_kernels.gpu.engine import Engine
from effv2_kernels.model import OptimizedModel

SIZE = (224, 224)
# Eager's fp16 outputs are 1.2e-3 off at most; what is wrong by more than this is not rounding.
DIFFERENCE = 1e-2
# Milliseconds of a call from which on a rival is timed by itself: in turns it would take all the time.
SLOW = 60.0
# Images up to which eager is worth a CUDA graph: with more, the GPU is what it waits for.
_GRAPHED = 32
# Inputs that take turns read so many times the bytes of the level-2 cache.
_CACHES = 2


class OutOfTime(Exception):
    """Tuning was stopped; what was measured is kept."""


def measure(
    variant: str,
    batch: int,
    device: torch.device,
    ceilings: Ceilings,
    *,
    seconds: float,
    rival: bool,
    ready: Callable[[float], None] = lambda seconds: None,
    turns: Turns | None = None,
) -> dict[str, Any]:
    """One figure, as gpu.json holds it.

    ceilings: measured in this process. seconds: of timing, beside compiling. rival: with torch.compile.
    ready: told the seconds that torch.compile took to compile, tune and capture. turns: with processes that
    measure something else meanwhile.

    ms, faster_than, rounds_ms and kernels_us (see ``timing.kernels``) are by contestant. ``refused`` says
    which of them could not run, or were wrong, and why. ``failure`` says that our own outputs differ from
    those of eager by more than rounding: then the times are worth nothing. A difference is None where outputs
    are not finite. bytes and flop are what our launches move and compute by plan, each buffer counted once
    for each launch.
    """
    turns = Turns(None) if turns is None else turns
    with turns.gpu():
        inputs = inputs_of(batch, device)
        fast = optimised(variant, device)
        half = build(variant, SIZE, device).half()
        half = half.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        keep_biases(half)
    runs: dict[str, timing.Run] = {"effv2": fast, "eager": half}
    refused: dict[str, str] = {}

    def offer(name: str, make: Callable[[], timing.Run]) -> None:
        try:
            runs[name] = make()
        except Exception as error:  # a rival that cannot run must not cost the others' figures
            refused[name] = f"{type(error).__name__}: {error}"[:2000]

    with torch.inference_mode(), best_of_cudnn(), _warnings() as warned:
        if batch <= _GRAPHED:
            with turns.gpu():
                offer("eager graph", lambda: graphed(half, inputs[0]))
        skipped = _cuda_graphs_skipped()
        if rival:
            start = time.perf_counter()
            with turns.compiling():
                offer("compile", lambda: compiled(half, inputs[0], turns))
            torch.cuda.synchronize(device)
            ready(time.perf_counter() - start)
        with turns.alone():
            expected = half(inputs[0])
            before = {name: difference(run(inputs[0]), expected) for name, run in runs.items()}
            alone = {name: timing.by_itself(run, inputs) for name, run in runs.items() if name != "effv2"}
            slow = {name: times for name, times in alone.items() if min(times) > SLOW}
            quick = {name: run for name, run in runs.items() if name not in slow}
            rounds = timing.interleave(quick, inputs, seconds) | slow
            kernels = {name: timing.kernels(run, inputs) for name, run in quick.items() if name != "eager"}
            after = {name: difference(run(inputs[0]), expected) for name, run in runs.items()}
    worst = {name: max(before[name], after[name]) for name in runs}
    for name in [name for name in runs if name != "effv2" and worst[name] > DIFFERENCE]:
        refused[name] = _too_different(worst[name])
        del rounds[name]
    ms = {name: statistics.median(values) for name, values in rounds.items()}
    launches = [launch for block in engine_of(fast).block_launches(*SIZE) for launch, *_ in block]
    found: dict[str, Any] = {
        "variant": variant,
        "batch": batch,
        "ms": ms,
        "faster_than": {
            name: ms[name] / ms["effv2"] if name in slow else timing.median_ratio(values, rounds["effv2"])
            for name, values in rounds.items()
            if name != "effv2"
        },
        "achieved": achieved(
            sum(launch.bytes for launch in launches),
            2 * sum(launch.macs for launch in launches),
            ms["effv2"] / 1e3,
            ceilings,
        ),
        "launches": len(launches),
        "inputs": len(inputs),
        "difference_from_eager": {name: w if w < float("inf") else None for name, w in worst.items()},
        "refused": refused,
        "warnings": warned,
        "kernels_us": kernels,
        "rounds_ms": {name: [float(f"{ms:.5g}") for ms in values] for name, values in rounds.items()},
    }
    if rival:
        found["compile_without_cuda_graph"] = _cuda_graphs_skipped() - skipped
    if worst["effv2"] > DIFFERENCE:
        found["failure"] = _too_different(worst["effv2"])
    return found


def _too_different(found: float) -> str:
    return f"differs from eager by {found:.2e}, allowed are {DIFFERENCE:.0e}"


def achieved(moved: int, flop: int, seconds: float, ceilings: Ceilings) -> dict[str, Any]:
    """Bytes and FLOP per second, and the share of the nearer ceiling; caches can take bytes beyond theirs."""
    return {
        "bytes": moved,
        "flop": flop,
        "bytes_per_second": moved / seconds,
        "flop_per_second": flop / seconds,
        "share_of_ceiling": ceilings.share(moved, flop, seconds),
        "ceilings": asdict(ceilings),
    }


def untuned(variant: str, batch: int, device: torch.device, *, seconds: float) -> float:
    """Milliseconds of our network with the tiles that it has on this GPU so far."""
    fast = optimised(variant, device)
    with torch.inference_mode():
        rounds = timing.interleave({"effv2": fast}, inputs_of(batch, device), seconds)
    return statistics.median(rounds["effv2"])


def tune(
    variant: str, batch: int, device: torch.device, go_on: Callable[[], bool]
) -> dict[str, dict[str, float]] | None:
    """Measure the tiles of one network at one batch in fp16; None where ``go_on`` stopped it in between.

    Returns the milliseconds of each tile that was measured, by the key of its launch.
    """
    return tune_engine(optimised(variant, device), batch, device, go_on)


def tune_engine(
    fast: OptimizedModel, batch: int, device: torch.device, go_on: Callable[[], bool]
) -> dict[str, dict[str, float]] | None:
    """As ``tune``, of a model."""

    def progress(what: str, share: float) -> None:
        if share < 1 and not go_on():
            raise OutOfTime

    x = inputs_of(batch, device, count=1)[0]
    try:
        return engine_of(fast).tune(x, progress)
    except OutOfTime:
        return None


@lru_cache
def optimised(variant: str, device: torch.device, backend: str = "triton") -> OptimizedModel:
    """The model as its users get it who ask for a backend; the same one at every call."""
    fast = effv2_kernels.optimize(build(variant, SIZE, device), dtype="fp16", backend=backend)
    assert isinstance(fast, OptimizedModel)
    return fast


def engine_of(fast: OptimizedModel) -> Engine:
    """The GPU engine of a model."""
    engine = fast.engine
    assert isinstance(engine, Engine)
    return engine


def inputs_of(batch: int, device: torch.device, count: int | None = None) -> list[Tensor]:
    """Different fp16 images in channels_last, at least two sets; together twice the level-2 cache."""
    if count is None:
        cache: int = torch.cuda.get_device_properties(device).L2_cache_size
        count = max(2, -(-_CACHES * cache // (batch * 3 * SIZE[0] * SIZE[1] * 2)))
    images = (torch.randn(batch, 3, *SIZE, device=device) for _ in range(count))
    return [x.half().contiguous(memory_format=torch.channels_last) for x in images]


def graphed(model: nn.Module, x: Tensor) -> timing.Run:
    """The model in a CUDA graph of its own."""
    held = x.clone(memory_format=torch.preserve_format)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            model(held)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = model(held)

    def run(images: Tensor) -> Tensor:
        held.copy_(images)
        graph.replay()
        y: Tensor = made.clone()
        return y

    return run


def compiled(model: nn.Module, x: Tensor, turns: Turns) -> timing.Run:
    """The model by torch.compile, compiled, tuned and captured; it takes turns in timing its kernels."""
    import torch._inductor.config as options

    torch.compiler.reset()
    if hasattr(options, "autotune_num_choices_displayed"):
        options.autotune_num_choices_displayed = 0  # it prints a table for every convolution
    with suppress(Exception):  # its processes, or it would begin to compile in threads of this one
        from torch._inductor.async_compile import AsyncCompile

        AsyncCompile.wait_pool_ready()
    run: timing.Run = torch.compile(model, mode="max-autotune", dynamic=False)
    with _timing_in_turns(turns):
        for _ in range(3):
            run(x)
    return run


@contextmanager
def _timing_in_turns(turns: Turns) -> Iterator[None]:
    """torch.compile has one object that times kernels."""
    try:
        from torch._inductor.runtime.benchmarking import benchmarker

        timed: Callable[..., Any] = benchmarker.benchmark_gpu
    except (ImportError, AttributeError):  # another version: then its times may disturb each other
        yield
        return

    def benchmark_gpu(*arguments: Any, **options: Any) -> Any:
        with turns.gpu():
            return timed(*arguments, **options)

    benchmarker.benchmark_gpu = benchmark_gpu
    try:
        yield
    finally:
        del benchmarker.benchmark_gpu


def difference(output: object, expected: Tensor) -> float:
    """The largest relative L2 over the logits of one image; infinite where some are not finite."""
    assert isinstance(output, Tensor)
    if output.shape != expected.shape or not bool(output.isfinite().all()):
        return float("inf")
    exact = expected.double()
    found = float(((output.double() - exact).norm(dim=1) / exact.norm(dim=1)).max())
    return found if found < float("inf") else float("inf")  # NaN where eager is not finite


@contextmanager
def best_of_cudnn() -> Iterator[None]:
    """cuDNN measures its algorithms, which our kernels do not use."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """What the package warns of meanwhile, such as a graph that could not be captured."""
    found: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    handler, logger = Keep(logging.WARNING), logging.getLogger("effv2_kernels")
    logger.addHandler(handler)
    try:
        yield found
    finally:
        logger.removeHandler(handler)


def _cuda_graphs_skipped() -> int:
    """How many graphs torch.compile has run without a CUDA graph in this process, as far as it counts."""
    try:
        from torch._dynamo.utils import counters
    except ImportError:
        return 0
    return int(counters["inductor"]["cudagraph_skips"])
