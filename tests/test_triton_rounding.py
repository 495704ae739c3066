"""Kernels with sums as long as those of the largest networks, added up like on a GPU."""

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

import gpu_sums
import triton
import triton.language as tl
from checks import BLOCK_BOUND, relative_l2, seeded
from test_triton_kernels import check

from effv2_kernels import shapes
from effv2_kernels.triton import attention, attention_downsample, tiles

# What L has where it is widest, on smaller maps; the quick ones first.
WIDEST = [
    shapes.head(384, 104, 2, 2),
    shapes.conv(80, 192, 5, 5, stride=2),
    shapes.ffn(384, 1536, 3, 3),
    shapes.attention(192, 6, 6, stride=2),
    shapes.attention(384, 4, 4),
    shapes.attention_downsample(192, 384, 6, 6),
]


@pytest.fixture
def like_a_gpu(monkeypatch):
    gpu_sums.install(monkeypatch)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(
    "shape",
    [*WIDEST[:2], *(pytest.param(shape, marks=pytest.mark.thorough) for shape in WIDEST[2:])],
    ids=str,
)
def test_widest_blocks(shape, dtype, like_a_gpu):
    check(shape, dtype, batch=1)


def test_two_passes_over_the_keys(like_a_gpu, monkeypatch):
    monkeypatch.setattr(attention, "_MANY_KEYS", 16)
    check(shapes.attention(192, 7, 7), torch.float32, batch=1)


@triton.jit
def one_product(a, b, c, K: tl.constexpr, PRECISION: tl.constexpr):
    m, k = tl.arange(0, 16), tl.arange(0, K)
    left = tl.load(a + m[:, None] * K + k[None, :])
    right = tl.load(b + k[:, None] * 16 + m[None, :])
    tl.store(c + m[:, None] * 16 + m[None, :], tl.dot(left, right, input_precision=PRECISION))


def product_error(dtype, precision):
    g = seeded(3)
    a, b = torch.randn(16, 4096, generator=g).to(dtype), torch.randn(4096, 16, generator=g).to(dtype)
    c = torch.empty(16, 16)
    one_product[(1,)](a, b, c, 4096, precision)
    return relative_l2(c, a.double() @ b.double())


def test_long_sums_are_off_like_on_a_gpu(monkeypatch):
    """4096 terms, which no kernel adds up in one go."""
    gpu_sums.install(monkeypatch)
    assert BLOCK_BOUND < product_error(torch.float32, "ieee") < 4 * BLOCK_BOUND
    assert BLOCK_BOUND < product_error(torch.float16, "ieee") < 3e-5
    assert BLOCK_BOUND < product_error(torch.float32, "tf32x3") < 5e-5


@triton.jit
def sum_over_keys(a, b, c, LONG: tl.constexpr):
    m, k = tl.arange(0, 16), tl.arange(0, 64)
    left = tl.load(a + m[:, None] * 64 + k[None, :])
    right = tl.load(b + k[:, None] * 16 + m[None, :])
    add_up: tl.constexpr = attention_downsample.long_dot if LONG else tiles.dot
    out = add_up(left, right, tl.zeros((16, 16), tl.float32), "tf32x3")
    tl.store(c + m[:, None] * 16 + m[None, :], out)


def test_sums_over_keys_are_not_too_small(like_a_gpu):
    """A hundred blocks would add up what is the same for all results."""
    g = seeded(5)
    a, b = torch.rand(16, 64, generator=g), torch.rand(64, 16, generator=g)
    exact = a.double() @ b.double()
    shares = {}
    for long in (False, True):
        c = torch.empty(16, 16)
        sum_over_keys[(1,)](a, b, c, long)
        shares[long] = float(((c.double() - exact) / exact).mean())
    assert shares[False] < -4e-7
    assert abs(shares[True]) < 1.5e-7


def test_tensor_cores_cut_off():
    ones = np.ones((1, 4), np.float32)
    small = np.full((4, 1), 2.0**-25, np.float32)
    assert gpu_sums._tensor_cores(ones, small, np.ones((1, 1), np.float32), 4)[0, 0] == 1
    assert gpu_sums._tensor_cores(ones, small, np.zeros((1, 1), np.float32), 4)[0, 0] == 2.0**-23
