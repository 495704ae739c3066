"""What is paid before the first image: import, optimize() and its memory."""

import sys
import time

import pytest
import torch
from checks import seeded

import effv2_kernels
from effv2_kernels.benchmarking.footprint import import_seconds, optimize_memory, verify_seconds


@pytest.mark.alone
def test_import_adds_next_to_nothing() -> None:
    assert import_seconds(repeats=1) <= 0.05


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_optimize_takes_little_memory() -> None:
    memory = optimize_memory("efficientformerv2_s0")
    assert memory.weights > 14e6  # 3.6 M parameters
    assert 0 < memory.kept <= memory.peak
    assert memory.peak_over_weights <= 2.0  # 1.90 here


@pytest.mark.alone
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_loading_takes_little_time(tmp_path, dtype) -> None:
    """From a file of S0 to a network that is packed and can run: at most 50 ms, of which C++ takes 15."""
    pytest.importorskip("safetensors")
    torch.manual_seed(seeded(920).initial_seed())
    model = effv2_kernels.create_model("efficientformerv2_s0")
    effv2_kernels.save(effv2_kernels.optimize(model, verify=False), tmp_path / "s0.effv2", dtype=dtype)
    seconds: list[float] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # many small operations, in which threads would wait for each other
    try:
        while len(seconds) < 40 and min(seconds, default=1) > 0.05:
            start = time.perf_counter()
            loaded = effv2_kernels.load(tmp_path / "s0.effv2")
            assert loaded.engine.packed_bytes > 13e6
            seconds.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    assert min(seconds) <= 0.05, sorted(seconds)


@pytest.mark.alone
def test_verifying_takes_little_time() -> None:
    # make targets measures seconds; how many there are depends on how busy the machine is.
    cost, eager = verify_seconds("efficientformerv2_s0")
    assert 0 < cost <= 10 * eager
