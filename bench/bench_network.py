"""Whole networks S0 to L on 224x224, one image and 16; with --rivals, beside what could be used instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import effv2_kernels
from effv2_kernels.benchmarking import OPENVINO, RIVALS, Comparison, compare
from effv2_kernels.benchmarking.contestants import OWN_BOUND
from effv2_kernels.benchmarking.measure import reference
from effv2_kernels.reference import VARIANTS
from effv2_kernels.shapes import randomise


@pytest.mark.benchmark(group="network", warmup=True, warmup_iterations=3, min_rounds=5, max_time=1.5)
@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize("name", VARIANTS)
def test_network(
    name: str,
    batch: int,
    time_checked: Callable[..., None],
    benchmark: Any,
    comparisons: list[Comparison],
    threads: int,
    pytestconfig: pytest.Config,
) -> None:
    torch.manual_seed(0)
    model = effv2_kernels.create_model(name)
    randomise(model)
    images = torch.randn(batch, 3, 224, 224)
    fast: Any = effv2_kernels.optimize(model, threads=threads)
    expected, gflop = reference(model, images)

    def run() -> Tensor:
        with torch.inference_mode():
            output: Tensor = fast(images)
        return output

    time_checked(run, expected, OWN_BOUND, batch * gflop, fast.choice.isa)
    if not pytestconfig.getoption("--rivals"):
        return
    rivals = [r for r in RIVALS if batch > 1 or r != "openvino_streams"]
    found = compare(
        model,
        images,
        ["effv2", *rivals],
        threads=threads,
        seconds=pytestconfig.getoption("--rivals-seconds"),
        name=name,
    )
    comparisons.append(found)
    benchmark.extra_info["times_faster_than"] = {
        rival: found.ratio(rival) for rival in ("eager", "compile", "onnxruntime", OPENVINO)
    }
