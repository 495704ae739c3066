"""Options of blocks on a GPU: activations, strides, kernels, parts that may be absent; against float64."""

import pytest
import torch
from block_shapes import HEADS, OPTIONS
from checks import seeded

pytest.importorskip("triton")

from test_triton_kernels import check

from effv2_kernels import declaration, shapes
from effv2_kernels.triton.conv import strided_conv
from effv2_kernels.triton.launch import FeatureMap
from effv2_kernels.triton.packing import conv_matrix
from effv2_kernels.triton.plan import execute, pack, refusal
from effv2_kernels.triton.tiles import ACTIVATIONS

HALF = (torch.float16, torch.bfloat16)


def is_taken(shape):
    return refusal(shapes.random_block(shape, seeded(1))) is None


def in_half_precision(case):
    """Whether a case is tried there as well: the activation of MobileNetV2, and what computes in float32."""
    return case[0] in ("relu6", "silu")


def cases(found):
    """(shape, dtype): every one in float32, some in half precision."""
    return [
        pytest.param(shape, dtype, id=f"{shape}-{dtype}")
        for case, shape in found.items()
        for dtype in (torch.float32, *HALF)
        if dtype == torch.float32 or in_half_precision(case)
    ]


def some_tiles(launch):
    return launch.tiles[::-3]


BOTTLENECKS = {
    **{(f, "strided"): shapes.ffn(12, 20, 9, 6, stride=2, residual=0, activation=f) for f in ACTIVATIONS},
    ("relu6", "residual"): shapes.ffn(12, 20, 5, 7, activation="relu6"),
    ("relu6", "other channels"): shapes.ffn(12, 20, 5, 7, out=24, residual=0, activation="relu6"),
    ("relu6", "no fc1"): shapes.ffn(12, 12, 5, 7, out=8, residual=0, activation="relu6", without=("fc1",)),
    ("silu", "no fc1"): shapes.ffn(12, 12, 9, 6, stride=2, residual=0, activation="silu", without=("fc1",)),
}


@pytest.mark.parametrize("way", ["by_pixels", "by_channels"])
@pytest.mark.parametrize(("shape", "dtype"), cases(BOTTLENECKS))
def test_ffn(shape, dtype, way):
    check(shape, dtype, plan=way, choose=some_tiles)


CONVOLUTIONS = {
    **{(f, "strided"): shapes.conv(12, 20, 5, 7, stride=2, activation=f) for f in ACTIVATIONS},
    **{(f, "of an image"): shapes.conv(3, 20, 5, 7, stride=2, activation=f) for f in ACTIVATIONS},
    ("relu6", "of one channel"): shapes.conv(1, 8, 6, 4, stride=2, activation="relu6"),
    ("relu6", "of few, not strided"): shapes.conv(3, 8, 6, 4, activation="relu6"),
    ("relu6", "3x3"): shapes.conv(12, 20, 5, 7, activation="relu6"),
    ("relu6", "1x1"): shapes.conv(12, 20, 5, 7, kernel=1, activation="relu6"),
    ("relu6", "1x1 strided"): shapes.conv(12, 20, 5, 7, kernel=1, stride=2, activation="relu6"),
}


@pytest.mark.parametrize(("shape", "dtype"), cases(CONVOLUTIONS))
def test_conv(shape, dtype):
    check(shape, dtype, choose=some_tiles)


OTHERS = {
    (f, kind): shape
    for f in ("relu6", "silu")
    for kind, shape in {
        "stem": shapes.stem(16, 9, 6, activation=f),
        "attention": shapes.attention(16, 3, 4, **HEADS, activation=f),
        "strided attention": shapes.attention(16, 5, 4, stride=2, **HEADS, activation=f),
        "attention_downsample": shapes.attention_downsample(16, 24, 5, 4, **HEADS, activation=f),
    }.items()
}


@pytest.mark.parametrize(("shape", "dtype"), cases(OTHERS))
def test_activations_of_other_blocks(shape, dtype):
    check(shape, dtype)


@pytest.mark.parametrize("name", [name for name, shape in OPTIONS.items() if is_taken(shape)])
def test_every_option_that_is_not_refused(name):
    check(OPTIONS[name], torch.float32)


def test_the_activations_are_those_of_blocks():
    assert ACTIVATIONS == declaration.ACTIVATIONS


@pytest.mark.parametrize(
    ("shape", "kernels"),
    [
        (shapes.conv(3, 32, 9, 9, stride=2), ["image_conv"]),
        (shapes.conv(5, 32, 9, 9, stride=2), ["conv"]),
        (shapes.conv(3, 32, 9, 9), ["conv"]),
        (shapes.conv(32, 48, 9, 9, kernel=1), ["product"]),
        (shapes.conv(32, 48, 9, 9, kernel=1, stride=2), ["conv"]),
    ],
    ids=str,
)
def test_the_kernel_of_a_convolution(shape, kernels):
    packed = pack(shapes.random_block(shape, seeded(1)), torch.float16, "cpu")
    x = FeatureMap(1, shape.height, shape.width, shape.sizes["in"], torch.float16)
    assert [launch.name for launch in packed.plan(x, "ieee")] == kernels
    assert packed.reads_any_layout is (kernels == ["image_conv"])


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_not_a_number_stays_one(activation):
    x = torch.full((1, 16, 1, 1), float("nan"))
    image, w = FeatureMap(1, 1, 1, 16, x.dtype), conv_matrix(torch.ones(16, 16, 1, 1), torch.float32, "cpu")
    launch = strided_conv(image, w, torch.zeros(16), "ieee", activation=activation, stride=1)
    y = torch.zeros(launch.output.elements)
    execute(launch, launch.tiles[0], {image: x.reshape(-1), launch.output: y})
    assert bool(y.isnan().all())
