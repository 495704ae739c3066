"""What kernels can do beside EfficientFormerV2: other activations, strides, no fc1; against float64."""

import pytest
import torch
import torch.nn.functional as F
from checks import BLOCK_BOUND, assert_close, seeded

pytest.importorskip("triton")

from test_triton_kernels import map_of, run_launches

from effv2_kernels import shapes
from effv2_kernels.triton.conv import strided_conv
from effv2_kernels.triton.packing import conv_matrix, vector
from effv2_kernels.triton.plan import execute, pack
from effv2_kernels.triton.tiles import ACTIVATIONS

BOUNDS = {torch.float32: BLOCK_BOUND, torch.float16: 5e-3, torch.bfloat16: 5e-3}
EXACT = {
    "none": lambda x: x,
    "gelu": F.gelu,
    "relu": F.relu,
    "relu6": F.relu6,
    "silu": F.silu,
    "hardswish": F.hardswish,
}


def halves_of_one(cases, activation="relu6"):
    """Every case in float32, and one activation in half precision."""
    return [
        pytest.param(*case, dtype, id=f"{'-'.join(map(str, case))}-{dtype}")
        for case in cases
        for dtype in BOUNDS
        if dtype == torch.float32 or case[0] == activation
    ]


def exact_ffn(ffn, x):
    """Of an FFN packed for x: f(dw(f(fc1(x)))), times fc2, plus x."""
    f, wide = EXACT[ffn.activation], x.double()
    if ffn.fc1 is not None:
        wide = f(F.conv2d(wide, ffn.fc1.double().t()[:, :, None, None], ffn.fc1_bias.double()))
    taps = ffn.dw.double().t().reshape(-1, 1, 3, 3)
    bias = ffn.dw_bias.double()
    wide = f(F.conv2d(wide, taps, bias, padding=1, stride=ffn.stride, groups=len(taps)))
    y = F.conv2d(wide, ffn.fc2.double().t()[:, :, None, None], ffn.fc2_bias.double())
    return y + x.double() if ffn.residual else y


@pytest.mark.parametrize("way", ["by_pixels", "by_channels"])
@pytest.mark.parametrize(
    ("activation", "stride", "expands", "dtype"),
    halves_of_one([(name, 2, True) for name in ACTIVATIONS] + [("relu6", 1, True), ("relu6", 1, False)]),
)
def test_ffn(activation, stride, expands, dtype, way):
    g = seeded(90)
    size = (5, 7) if stride == 1 else (9, 6)
    ffn = pack(shapes.random_block(shapes.ffn(12, 20 if expands else 12, *size), g), dtype, "cpu")
    ffn.activation, ffn.stride, ffn.residual = activation, stride, stride == 1 and expands
    if not expands:
        ffn.fc1 = ffn.fc1_bias = None
    x = 3 * torch.randn(2, 12, *size, generator=g).to(dtype)
    image = map_of(x)
    y = run_launches(getattr(ffn, way)(image, "ieee"), x, image, choose=lambda launch: launch.tiles[::-3])
    assert_close(y.float(), exact_ffn(ffn, x), BOUNDS[dtype])


@pytest.mark.parametrize(
    ("activation", "kernel", "stride", "dtype"),
    halves_of_one(
        [(name, 3, 2) for name in ACTIVATIONS] + [("relu6", 3, 1), ("relu6", 1, 1), ("relu6", 1, 2)]
    ),
)
def test_conv(activation, kernel, stride, dtype):
    g = seeded(91)
    x = torch.randn(2, 12, 5, 7, generator=g).to(dtype)
    weight, bias = torch.randn(20, 12, kernel, kernel, generator=g), torch.randn(20, generator=g)
    image, w = map_of(x), conv_matrix(weight, dtype, "cpu")
    launch = strided_conv(image, w, vector(bias, "cpu"), "ieee", activation=activation, stride=stride)
    y = run_launches([launch], x, image)
    convolved = F.conv2d(x.double(), weight.to(dtype).double(), bias.double(), stride, kernel // 2)
    assert_close(y.float(), EXACT[activation](convolved), BOUNDS[dtype])


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_not_a_number_stays_one(activation):
    x = torch.full((1, 16, 1, 1), float("nan"))
    image, w = map_of(x), conv_matrix(torch.ones(16, 16, 1, 1), torch.float32, "cpu")
    launch = strided_conv(image, w, torch.zeros(16), "ieee", activation=activation, stride=1)
    y = torch.zeros(launch.output.elements)
    execute(launch, launch.tiles[0], {image: x.reshape(-1), launch.output: y})
    assert bool(y.isnan().all())
