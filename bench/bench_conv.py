"""The strided convolution between stages at every shape of S0 to L, for one 224x224 image."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from effv2_kernels.shapes import BlockShape, family_shapes

SHAPES = family_shapes("conv")


@pytest.mark.benchmark(group="conv", warmup=True, warmup_iterations=20, min_rounds=20, max_time=0.4)
@pytest.mark.parametrize("name", SHAPES)
def test_conv(name: str, time_block: Callable[[BlockShape], None]) -> None:
    time_block(SHAPES[name])
