"""Options of blocks on a GPU: activations, strides, kernels, parts that may be absent; against float64."""

import pytest
import torch
from block_shapes import HEADS, OPTIONS
from checks import seeded

pytest.importorskip("triton")

from test_triton_kernels import check

from effv2_kernels import declaration, shapes
from effv2_kernels.gpu.launch import FeatureMap
from effv2_kernels.gpu.packing import conv_matrix
from effv2_kernels.triton.conv import strided_conv
from effv2_kernels.triton.kernels import pack, refusal
from effv2_kernels.triton.tiles import ACTIVATIONS


def is_taken(shape):
    return refusal(shapes.random_block(shape, seeded(1))) is None


def cases(found, half=(torch.float16, torch.bfloat16)):
    """(shape, dtype): all in float32; in half precision MobileNetV2's activation and one with exp."""
    return [
        pytest.param(shape, dtype, id=f"{shape}-{dtype}")
        for (activation, _), shape in found.items()
        for dtype in (torch.float32, *half)
        if dtype == torch.float32 or activation in ("relu6", "silu")
    ]


def some_tiles(launch):
    return launch.tiles[::-3]


# With so many channels that roundings to bfloat16 even out: of 12, 20 and 12 channels one block in 300 is
# more than 5e-3 off, of these at most 4.4e-3, by the same sums in float64 with the same roundings.
BOTTLENECKS = {
    **{
        (f, "strided"): shapes.ffn(24, 72, 9, 6, out=40, stride=2, residual=0, activation=f)
        for f in ACTIVATIONS
    },
    ("relu6", "residual"): shapes.ffn(24, 72, 5, 7, activation="relu6"),
    ("relu6", "other channels"): shapes.ffn(24, 72, 5, 7, out=40, residual=0, activation="relu6"),
    ("relu6", "no fc1"): shapes.ffn(24, 24, 5, 7, out=16, residual=0, activation="relu6", without=("fc1",)),
    ("silu", "no fc1"): shapes.ffn(24, 24, 9, 6, stride=2, residual=0, activation="silu", without=("fc1",)),
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


@pytest.mark.parametrize(("shape", "dtype"), cases(OTHERS, half=(torch.float16,)))
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
    launch.run(launch.tiles[0], {image: x.reshape(-1), launch.output: y})
    assert bool(y.isnan().all())
