"""``compare``: build the contestants, refuse the wrong ones, time the others in turns."""

from __future__ import annotations

import contextlib
import copy
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata

import torch
from torch import Tensor, nn

from effv2_kernels.backends import check_threads
from effv2_kernels.benchmarking.comparison import Comparison, Entry
from effv2_kernels.benchmarking.contestants import Contestant, Runner, effv2, find
from effv2_kernels.benchmarking.interleave import check_seconds, interleave
from effv2_kernels.errors import Effv2Error, InputError, ModelError, UnavailableError

# Long enough to reach the sustained clock, short enough to stand beside every round.
PEAK_MILLISECONDS = 20.0
VERSIONS = ("torch", "onnxruntime", "openvino")


def compare(
    model: nn.Module,
    images: Tensor,
    contestants: Sequence[str | Contestant] = ("effv2", "eager"),
    *,
    threads: int | None = None,
    isa: str | None = None,
    seconds: float = 10.0,
    name: str | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> Comparison:
    """Time ``contestants`` in turns on ``model(images)``.

    model: in eval mode, float32, on the CPU; returns logits (N, classes). images: (N, C, H, W) float32.
    contestants: names from ``contestants.CONTESTANTS``, or Contestants of the caller's own.
    threads: of every contestant; None is ``torch.get_num_threads()``. isa: of the contestant "effv2".
    seconds: of timing; building, checking and warming up come on top.
    progress: called with what is being done and how much of it is done, 0 to 1.

    A contestant whose logits differ from the float64 run of ``model`` by more than its bound, before or
    after timing, gets no figures; nor does one that cannot be built. The reason is in its entry.

    Raises UnknownNameError for an unknown contestant, and InputError for images that the model does not take
    and for what is no number of threads or seconds.
    """
    check_threads(threads)
    check_seconds(seconds)
    if model.training:
        raise ModelError("compare() takes a model in eval mode: call model.eval() first.")
    if images.ndim != 4 or len(images) == 0:
        raise InputError(f"expected a batch of images (N, C, H, W), but got {tuple(images.shape)}.")
    images = images.detach().contiguous()
    chosen = [find(c) if isinstance(c, str) else c for c in contestants]
    chosen = [effv2(isa=isa) if c.name == "effv2" and isa is not None else c for c in chosen]
    tell = progress or (lambda what, share: None)
    threads = threads or torch.get_num_threads()
    with _torch_threads(threads):
        tell("float64 reference", 0.0)
        expected, gflop = reference(model, images)
        built = []
        for i, contestant in enumerate(chosen):
            tell(f"building {contestant.name}", i / len(chosen))
            built.append(_build(contestant, model, images, threads, expected))
        tell("timing", 0.0)
        found = interleave(
            {b.entry.name: b.run for b in built if b.run is not None},
            seconds,
            gauge=peak_gauge(threads),
            progress=lambda share: tell("timing", share),
        )
    entries = []
    for b in built:
        output = found.outputs.get(b.entry.name)
        if output is None:
            entries.append(b.entry)
            continue
        assert isinstance(output, Tensor)
        error = relative_error(output, expected)
        entries.append(
            Entry.measured(
                found.calls[b.entry.name],
                name=b.entry.name,
                settings=b.entry.settings,
                error=error,
                ready_seconds=b.entry.ready_seconds,
            )
            if error <= b.bound
            else _refusal(b.entry, error, b.bound)
        )
    return Comparison(
        model=name or type(model).__name__,
        batch=len(images),
        image_size=(images.shape[2], images.shape[3]),
        threads=threads,
        isa=_isa(chosen, isa),
        cpu=_cpu_name(),
        gflop=gflop,
        entries=tuple(entries),
        peak=tuple(found.gauge),
        versions=_versions(),
    )


@dataclass(frozen=True)
class _Built:
    entry: Entry
    bound: float
    run: Runner | None  # None where the entry says why it was refused


def _build(
    contestant: Contestant, model: nn.Module, images: Tensor, threads: int, expected: Tensor
) -> _Built:
    entry = Entry(contestant.name)
    if missing := contestant.missing():
        return _Built(_without(entry, f"not installed: {', '.join(missing)}"), contestant.bound, None)
    start = time.perf_counter()
    try:
        with warnings.catch_warnings():
            # Converters warn about shapes that become constants, which is what fixed shapes mean.
            warnings.simplefilter("ignore")
            run, settings = contestant.build(model, images, threads)
            output = run()
    except Exception as error:
        # One rival that fails, in whatever way of its own, must not cost the figures of the others.
        reason = str(error) if isinstance(error, Effv2Error) else f"{type(error).__name__}: {error}"
        return _Built(_without(entry, f"cannot run: {reason}"), contestant.bound, None)
    entry = Entry(contestant.name, settings=settings, ready_seconds=time.perf_counter() - start)
    distance = relative_error(output, expected)
    if distance <= contestant.bound:
        return _Built(entry, contestant.bound, run)
    return _Built(_refusal(entry, distance, contestant.bound), contestant.bound, None)


def _without(entry: Entry, reason: str) -> Entry:
    return Entry(entry.name, settings=entry.settings, refused=reason)


def _refusal(entry: Entry, error: float, bound: float) -> Entry:
    reason = f"wrong result: relative L2 {error:.1e} against float64, {bound:.0e} is allowed"
    return Entry(entry.name, settings=entry.settings, error=error, refused=reason)


def relative_error(output: Tensor, expected: Tensor) -> float:
    """Relative L2 over the whole output; NaN for another shape or a NaN in the output."""
    if output.shape != expected.shape:
        return float("nan")
    return float((output.double() - expected).norm() / expected.norm())


def reference(model: nn.Module, images: Tensor) -> tuple[Tensor, float]:
    """The logits of ``model`` in float64, and the GFLOP of one image, two for each multiply-add."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad():
        expected = copy.deepcopy(model).double()(images.double())
        with FlopCounterMode(display=False) as counter:
            model(images[:1])
    if not isinstance(expected, Tensor):
        raise ModelError("compare() takes a model that returns one tensor of logits, not a list of features.")
    return expected, counter.get_total_flops() / 1e9


def peak_gauge(threads: int, isa: str | None = None) -> Callable[[], float] | None:
    """Measures the fp32 FMA peak in GFLOP/s of an ISA, the machine's best one by default.

    None where the engine is missing.
    """
    from effv2_kernels import cpu

    try:
        native = cpu.native()
    except UnavailableError:
        return None
    wanted, used = isa or native.available_isas()[0], min(threads, native.usable_cpus())

    def gauge() -> float:
        peak: float = native.measure_peak(wanted, used, PEAK_MILLISECONDS)
        return peak

    return gauge


def _isa(chosen: Sequence[Contestant], isa: str | None) -> str | None:
    from effv2_kernels import cpu

    if all(c.name != "effv2" for c in chosen):
        return None
    try:
        return isa or cpu.default_isa()
    except Effv2Error:
        return None


def _cpu_name() -> str:
    from effv2_kernels import cpu

    try:
        return str(cpu.native().cpu_name())
    except UnavailableError:
        return "unknown"


def _versions() -> dict[str, str]:
    versions = {}
    for package in VERSIONS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


@contextlib.contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
