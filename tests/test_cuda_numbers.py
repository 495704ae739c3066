"""Single numbers in CUDA kernels: activations of all sizes, NaN, infinities, what a format cannot hold."""

import pytest
import torch
from checks import HALF_BLOCK_BOUND, check_same_kind, exact, rebuilt, same_bits, seeded
from emulated_cuda import (
    DTYPES,
    UNIT,
    compiled_shapes,
    image_of,
    kernels_of_cuda,
    needs_emulator,
    one_thread,
    packed_case,
    run_launches,
)

from effv2_kernels import shapes
from effv2_kernels.declaration import ACTIVATIONS
from effv2_kernels.reference.activation import activate

pytestmark = needs_emulator


@pytest.fixture(autouse=True)
def quiet_pytorch():
    with one_thread():
        yield


def run_block(block, x, plan="plan"):
    packed = kernels_of_cuda().pack(block, x.dtype, "cpu")
    x = x.contiguous(memory_format=torch.channels_last)
    image = image_of(x)
    launches = getattr(packed, plan)(image, *(["ieee"] if plan == "plan" else []))
    return run_launches(launches, x, image)


def of_each(values, activation):
    """f of single values: each is a pixel of its own, since all that is summed with a NaN is NaN."""
    shape = shapes.conv(8, 8, 1, len(values), kernel=1, activation=activation)
    block = shapes.random_block(shape, seeded(1))
    weight = torch.zeros_like(block.conv.weight)
    weight[:, 0] = 1
    block = rebuilt(block, weight=weight, bias=torch.zeros(8))
    x = torch.zeros(1, 8, 1, len(values), dtype=values.dtype)
    x[0, 0, 0] = values
    y = run_block(block, x)
    assert bool((y == y[:, :1])[~y.isnan()].all())
    return y[0, 0, 0]


def all_bits(dtype):
    """Every 16th number of the format, and those around the ends."""
    bits = torch.cat(
        [torch.arange(-(2**15), 2**15, 16), torch.tensor([1, -1, 0x7BFF, -0x401, 0x7F7F, -0x81])]
    )
    values = bits.to(torch.int16).view(dtype)
    return values[values.isfinite()]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_of_all_sizes(activation, dtype):
    x = all_bits(dtype)
    y, expected = of_each(x, activation).double(), activate(x.double(), activation)
    # What rounding changes, at least half of the least number, and what tanh is off by, of a sum with x / 2.
    allowed = UNIT[dtype] * expected.abs() + 2**-25
    if activation in ("gelu", "silu"):
        allowed += 2 * UNIT[torch.float16] * x.double().abs() + 2**-24
    elif activation == "hardswish":
        allowed += 1e-6 * x.double().abs()
    wrong = ~((y - expected).abs() <= allowed)
    wrong &= ~((y == expected.to(dtype).double()) | expected.to(dtype).isinf())
    assert not bool(wrong.any()), (x[wrong][:3], y[wrong][:3], expected[wrong][:3])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_of_what_is_no_number(activation, dtype):
    x = torch.tensor([torch.nan, torch.inf, -torch.inf, 1.0], dtype=dtype)
    y, expected = of_each(x, activation), activate(x.double(), activation)
    assert bool(y[0].isnan())
    if dtype == torch.float16 and activation == "gelu":  # in halves: what it is far below 0
        expected[2] = 0
    check_same_kind(y, expected, activation, HALF_BLOCK_BOUND)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_values_beyond_halves(activation):
    """They become infinite, as where the reference's are rounded; what is clipped is an ordinary number.

    Of GELU, SiLU and hard-swish the lower end is 0.
    """
    shape = shapes.conv(8, 8, 1, 6, kernel=1, activation=activation)
    block = shapes.random_block(shape, seeded(1))
    block = rebuilt(block, weight=2 * torch.eye(8).view(8, 8, 1, 1), bias=torch.zeros(8))
    x = torch.tensor([60000.0, -60000.0, 32752.0, -32752.0, 32768.0, -32768.0], dtype=torch.float16)
    x = x.expand(1, 8, 1, 6)
    y, expected = run_block(block, x), exact(block, x).half()
    assert bool(expected.isinf().any()) == (activation != "relu6")
    sign = x > 0 if activation in ("gelu", "silu", "hardswish") else torch.ones_like(x, dtype=torch.bool)
    assert same_bits(y[sign], expected[sign])
    assert bool((y[~sign].float() == 0).all())


@pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if name != "none"])
def test_depthwise_sums_below_halves(activation):
    """They are made in halves, and minus infinity is as good as any that is far below 0."""
    shape = shapes.ffn(8, 8, 3, 5, residual=0, without=("fc1",), activation=activation)
    block = shapes.random_block(shape, seeded(1))
    weight = torch.zeros_like(block.dw.weight)
    weight[:, 1, 1] = 2
    x = torch.full((1, 8, 3, 5), -60000.0, dtype=torch.float16)
    block = rebuilt(block, dw_weight=weight, dw_bias=torch.zeros(8))
    assert same_bits(run_block(block, x), exact(block, x).half())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_largest_numbers(dtype):
    """Sums are made in float: neither their terms nor their parts have to fit."""
    shape = shapes.conv(64, 8, 1, 3, kernel=1)
    block = shapes.random_block(shape, seeded(1))
    weight = torch.ones_like(block.conv.weight)
    weight[:, 32:] = -1
    block = rebuilt(block, weight=weight, bias=torch.zeros(8))
    x = torch.full((1, 64, 1, 3), 60000.0).to(dtype)
    x[:, 0] = 4
    y = run_block(block, x)
    assert same_bits(y, exact(block, x).to(dtype))


CASES = [
    shapes.stem(16, 13, 18),
    shapes.conv(16, 24, 5, 6),
    shapes.conv(16, 24, 5, 6, kernel=1, activation="relu6"),
    shapes.conv(3, 16, 9, 14, stride=2, activation="relu6"),
    shapes.ffn(16, 40, 9, 9),
    shapes.ffn(16, 40, 9, 9, activation="relu6"),
    shapes.ffn(24, 24, 9, 9, without=("fc1",), activation="relu6"),
    shapes.attention(16, 3, 4),
    shapes.attention(16, 9, 8),
    shapes.attention(16, 5, 6, stride=2),
    shapes.attention_downsample(16, 24, 5, 6),
    shapes.head(16, 9, 3, 4),
]


def check_not_finite(shape, dtype, plan="plan"):
    """NaN and infinities come out where they do in float64, and never in other images of the batch.

    Of GELU in halves minus infinity becomes 0 (``test_values_beyond_halves``), and a sum with others that are
    infinite as they are.
    """
    _, clean, _ = packed_case(shape, dtype, 3, seed=5)
    block = shapes.random_block(shape, seeded(6))
    others = run_block(block, clean, plan)
    for value in (torch.nan, torch.inf, -torch.inf):
        for row, column in ((0, 0), (-1, -1), (1, 0)):
            x = clean.clone(memory_format=torch.channels_last)
            x[1, x.shape[1] // 2, row, column] = value
            y, expected = run_block(block, x, plan), exact(block, x)
            what = f"{shape} {dtype}, {value} at {(row, column)}"
            for other in (0, 2):
                assert torch.equal(y[other], others[other]), f"{what}: spread to image {other}"
            found, exact_one = y[1].reshape(expected[1].shape), expected[1]
            if dtype == torch.float16 and block.values().get("activation") == "gelu":
                found = torch.where(exact_one.isnan() & found.isinf(), torch.nan, found)
            check_same_kind(found, exact_one, what, 4 * HALF_BLOCK_BOUND)


@pytest.mark.parametrize("shape", CASES, ids=str)
def test_not_finite(shape):
    for dtype in DTYPES[:1] if shape == shapes.attention(16, 9, 8) else DTYPES:
        check_not_finite(shape, dtype)


# Of these the hidden channels are no whole slices: an infinity times the weights of those that do not exist.
@pytest.mark.parametrize("activation", ["gelu", "relu6", "none"])
def test_not_finite_in_a_whole_ffn(activation):
    for dtype in DTYPES:
        check_not_finite(shapes.ffn(16, 40, 9, 9, activation=activation), dtype, "whole")


def test_activations_are_those_that_are_compiled():
    """By their names: a step of another one is refused."""
    from effv2_kernels import _cuda

    assert "product" in compiled_shapes()
    with pytest.raises(ValueError, match='there is no activation "mish"'):
        _cuda.Step("product", "fp16", 0, {"activation": "mish"})
    with pytest.raises(ValueError, match="product has no field"):
        _cuda.Step("product", "fp16", 0, {"wide": 1})
    with pytest.raises(ValueError, match='there is no kind of step "pool"'):
        _cuda.Step("pool", "fp16", 0, {})
