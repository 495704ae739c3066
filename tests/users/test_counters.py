"""People count what a model costs: multiply-adds, parameters, operations."""

import pytest
import torch
from checks import block_case, seeded
from models import TINY, timm_odd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import effv2_kernels.ops  # noqa: F401  (registers the ops)
from effv2_kernels import optimize, shapes
from effv2_kernels.reference import run_block


def flops(call):
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.situation("`FlopCounterMode`", "works: within 2 % of the original's count")
def test_flops(mode):
    model = timm_odd(seeded(661))
    fast = optimize(model)
    x = torch.randn(2, 1, 64, 96)
    with mode():
        expected = flops(lambda: model(x))
        assert abs(flops(lambda: fast(x)) / expected - 1) <= 0.02


def test_flops_of_single_ops():
    block, x, _ = block_case(shapes.attention(16, 6, 6, heads=2, key_dim=8, value_dim=8))
    values = list(block.values().values())
    found = flops(lambda: torch.ops.effv2.attention(x, *values))
    assert found == flops(lambda: run_block(block, x)) > 0


@pytest.mark.situation("A `TorchDispatchMode` that logs operations", "works: it sees PyTorch's own")
def test_a_logger():
    class Logger(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.seen = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.seen.append(str(func))
            return func(*args, **(kwargs or {}))

    fast = optimize(TINY.build(seeded(662)))
    with torch.no_grad(), Logger() as logger:
        fast(TINY.images(seeded(663)))
    assert any("convolution" in name for name in logger.seen)
