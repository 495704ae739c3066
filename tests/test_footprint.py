"""What is paid before the first image: import, optimize() and its memory."""

import sys

import pytest

from effv2_kernels.benchmarking.footprint import import_seconds, optimize_memory, verify_seconds


@pytest.mark.alone
def test_import_adds_next_to_nothing() -> None:
    assert import_seconds(repeats=1) <= 0.05


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_optimize_takes_little_memory() -> None:
    memory = optimize_memory("efficientformerv2_s0")
    assert memory.weights > 14e6  # 3.6 M parameters
    assert 0 < memory.kept <= memory.peak
    assert memory.peak_over_weights <= 2.5


@pytest.mark.alone
def test_verifying_takes_little_time() -> None:
    # make targets measures seconds; how many there are depends on how busy the machine is.
    cost, eager = verify_seconds("efficientformerv2_s0")
    assert 0 < cost <= 10 * eager
