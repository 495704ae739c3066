"""Options, shared fixtures, and the table of ratios at the end.

pytest bench/ --benchmark-only            every block and whole networks
pytest bench/ --benchmark-only --rivals   whole networks beside what could be used instead
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from effv2_kernels import blocks, cpu
from effv2_kernels.benchmarking import Comparison, report, write
from effv2_kernels.benchmarking.measure import peak_gauge, relative_error
from effv2_kernels.benchmarking.targets import speed_targets, table
from effv2_kernels.reference import run_block
from effv2_kernels.shapes import BlockShape, random_block, random_input

BLOCK_BOUND = 5e-7  # relative L2 of one block against float64

COMPARISONS = pytest.StashKey[list[Comparison]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("effv2_kernels")
    group.addoption("--rivals", action="store_true", help="also time what could be used instead")
    group.addoption(
        "--rivals-seconds",
        type=float,
        default=10.0,
        metavar="S",
        help="of timing for one network; default: 10",
    )
    group.addoption("--rivals-json", metavar="FILE", help="write everything measured about the rivals")
    group.addoption("--threads", type=int, default=2, metavar="N", help="of everything timed; default: 2")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("python_files", "bench_*.py")
    config.stash[COMPARISONS] = []


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    found = config.stash[COMPARISONS]
    if not found:
        return
    terminalreporter.section("times faster than what could be used instead")
    terminalreporter.write_line(report.ratios(found))
    if targets := [target for comparison in found for target in speed_targets(comparison)]:
        terminalreporter.section("what is promised")
        terminalreporter.write_line(table(targets))
    path = config.getoption("--rivals-json")
    if path is not None:
        write(path, found)
        terminalreporter.write_line(f"\nwritten to {path}")


@pytest.fixture(scope="session")
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    count: int = request.config.getoption("--threads")
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield count
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def comparisons(request: pytest.FixtureRequest) -> list[Comparison]:
    """What the table of ratios is printed of."""
    return request.config.stash[COMPARISONS]


@pytest.fixture
def time_checked(benchmark: Any, threads: int) -> Callable[..., None]:
    """Time ``run``, and assert its result before and after; a wrong one is never timed, nor reported."""
    gauge = peak_gauge(threads)
    assert gauge is not None

    def timed(run: Callable[[], Tensor], expected: Tensor, bound: float, gflop: float, isa: str) -> None:
        before = relative_error(run(), expected)
        assert before <= bound, f"wrong result before timing: relative L2 {before:.2e}"
        peaks = [gauge()]
        output = benchmark(run)
        peaks.append(gauge())
        after = relative_error(output, expected)
        benchmark.has_error = not after <= bound
        assert after <= bound, f"wrong result after timing: relative L2 {after:.2e}"
        benchmark.extra_info |= {"isa": isa, "threads": threads, "gflop": gflop, "relative_l2": after}
        if benchmark.enabled:
            peak = sum(peaks) / 2
            gflops = gflop / benchmark.stats.stats.median
            benchmark.extra_info |= {
                "gflops": round(gflops, 2),
                "peak_gflops": round(peak, 2),
                "share_of_peak": round(gflops / peak, 4),
            }

    return timed


@pytest.fixture
def time_block(time_checked: Callable[..., None], threads: int) -> Callable[[BlockShape], None]:
    """Time one block alone on one image, against its reference in float64."""

    def timed(shape: BlockShape) -> None:
        generator = torch.Generator().manual_seed(0)
        block, x = random_block(shape, generator), random_input(shape, generator)
        engine = cpu.Engine(blocks.Network((block,), (shape.kind,)))
        gflop = 2e-9 * engine.block_macs(shape.height, shape.width)[0]
        # A network hands its blocks NHWC.
        x = x.contiguous(memory_format=torch.channels_last)
        expected = run_block(block, x.double())
        time_checked(lambda: engine.run(x, threads)[0], expected, BLOCK_BOUND, gflop, engine.isa)

    return timed
