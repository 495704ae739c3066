"""Every block by CUDA kernels in the emulator against float64: odd sizes, activations, strides, races."""

import pytest
import torch
from checks import HALF_BLOCK_BOUND, assert_close, exact, layouts, same_bits, seeded
from emulated_cuda import (
    BACKWARDS,
    DTYPES,
    FORWARDS,
    ORDERS,
    WATCHED,
    bound_of,
    check,
    image_of,
    in_every_order,
    kernels_of_cuda,
    needs_emulator,
    one_thread,
    packed_case,
    run_launches,
)

from effv2_kernels import shapes
from effv2_kernels.declaration import ACTIVATIONS
from effv2_kernels.errors import ResolutionError, UnavailableError
from effv2_kernels.gpu.launch import FeatureMap

pytestmark = needs_emulator


@pytest.fixture(autouse=True)
def quiet_pytorch():
    with one_thread():
        yield


# Widths are any multiples of eight, maps of any size: tiles that are partial, and pixels that no tile has.
CASES = [
    shapes.stem(16, 13, 18),
    shapes.stem(40, 37, 30),
    shapes.stem(8, 3, 1),
    shapes.ffn(24, 72, 9, 11),
    shapes.ffn(40, 136, 9, 4),
    shapes.ffn(8, 8, 1, 1),
    shapes.ffn(32, 128, 10, 17),
    shapes.ffn(176, 352, 7, 7),
    shapes.ffn(16, 40, 7, 9, out=24, stride=2, residual=0, activation="relu6"),
    shapes.ffn(16, 40, 8, 4, stride=2, residual=0, out=16),
    shapes.ffn(16, 40, 5, 7, residual=0),
    shapes.ffn(24, 24, 5, 7, out=16, residual=0, without=("fc1",)),
    shapes.ffn(72, 72, 9, 15, without=("fc1",), activation="relu6"),
    shapes.ffn(24, 24, 6, 9, out=40, stride=2, residual=0, without=("fc1",)),
    shapes.attention(24, 3, 5),
    shapes.attention(48, 7, 7),
    shapes.attention(16, 1, 1, stride=2),
    shapes.attention(32, 9, 11, stride=2),
    shapes.attention(24, 8, 6, stride=2),
    shapes.attention(16, 5, 6, table=(3, 4)),
    shapes.attention(40, 7, 5, stride=2, table=(2, 6)),
    shapes.conv(24, 40, 9, 7, stride=2),
    shapes.conv(72, 40, 5, 4, stride=2),
    shapes.conv(16, 24, 5, 6),
    shapes.conv(16, 24, 5, 6, kernel=1),
    shapes.conv(40, 72, 4, 7, kernel=1, stride=2),
    shapes.conv(3, 24, 33, 18, stride=2),
    shapes.conv(3, 8, 5, 60, stride=2),
    shapes.attention_downsample(32, 48, 14, 14),
    shapes.attention_downsample(16, 24, 9, 7),
    shapes.attention_downsample(16, 24, 1, 2),
    shapes.attention_downsample(16, 24, 5, 6, table=(3, 4)),
    shapes.head(48, 10, 7, 7),
    shapes.head(40, 37, 3, 3),
    shapes.head(24, 1, 2, 5),
    shapes.head(8, 1001, 1, 1),
    # Too wide for a tile of theirs: more launches.
    shapes.stem(136, 13, 18),
    shapes.ffn(1200, 16, 3, 5),
    shapes.ffn(1600, 1600, 2, 3, residual=0, stride=2, out=1640, without=("fc1",), activation="silu"),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", CASES, ids=str)
def test_block(shape, dtype):
    check(shape, dtype)


@pytest.mark.parametrize("name", [name for name in shapes.family_shapes() if name.startswith("s0-")])
def test_block_of_s0(name):
    """Within the bounds that hold for all halves."""
    shape = shapes.family_shapes()[name]
    for dtype in DTYPES:
        packed, x, expected = packed_case(shape, dtype, 1)
        image = image_of(x)
        y = run_launches(packed.plan(image, "ieee"), x, image, seed=1).reshape(expected.shape)
        assert_close(y, expected, HALF_BLOCK_BOUND, f"{name} {dtype}", dtype)
        assert_close(y, expected, bound_of(shape, dtype), f"{name} {dtype}", dtype)


# Keys of several rounds, queries of several blocks of threads, and biases that are looked up by distance.
LONG = [
    shapes.attention(24, 9, 8),
    shapes.attention(16, 12, 11),
    shapes.attention_downsample(16, 24, 15, 18),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", LONG, ids=str)
def test_many_tokens(shape, dtype):
    launches = check(shape, dtype, batch=1)
    (attend,) = (launch for launch in launches if launch.kind == shape.kind)
    assert attend.arguments["dense"] == (shape == LONG[0])


def test_many_tokens_of_two_images():
    check(LONG[0], torch.float16, orders=(FORWARDS, BACKWARDS))


WITH_ACTIVATION = {
    "ffn": lambda name: shapes.ffn(16, 40, 5, 7, activation=name),
    "stem": lambda name: shapes.stem(16, 9, 14, activation=name),
    "conv": lambda name: shapes.conv(16, 24, 5, 6, activation=name),
    "conv of an image": lambda name: shapes.conv(3, 16, 9, 14, stride=2, activation=name),
    "attention": lambda name: shapes.attention(16, 3, 4, activation=name),
    "strided attention": lambda name: shapes.attention(16, 5, 6, stride=2, activation=name),
    "attention_downsample": lambda name: shapes.attention_downsample(16, 24, 5, 6, activation=name),
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", WITH_ACTIVATION)
def test_activations(kind, activation):
    for dtype in DTYPES:
        check(WITH_ACTIVATION[kind](activation), dtype, orders=(FORWARDS,))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape", [shapes.stem(16, 9, 11), shapes.conv(3, 16, 9, 11, stride=2, activation="relu6")], ids=str
)
def test_images_of_any_strides(shape, dtype):
    g = seeded(17)
    block = shapes.random_block(shape, g)
    x = shapes.random_input(shape, g, 2).to(dtype)
    expected = exact(block, x)
    packed = kernels_of_cuda().pack(block, dtype, "cpu")
    assert packed.reads_any_layout
    outputs = []
    for name, view in [("contiguous", x), *layouts(x)]:
        image = image_of(view, view.stride())
        y = in_every_order(packed.plan(image, "ieee"), view, image)
        assert_close(y, expected, bound_of(shape, dtype), name, dtype)
        outputs.append(y)
    for y in outputs[1:]:
        assert same_bits(y, outputs[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [shapes.ffn(24, 72, 9, 11), shapes.attention(16, 3, 5)], ids=str)
def test_an_image_alone_has_the_bits_that_it_has_among_others(shape, dtype):
    packed, x, _ = packed_case(shape, dtype, 3)
    together = image_of(x)
    launches = packed.plan(together, "ieee")
    y = run_launches(launches, x, together, **FORWARDS)
    for i in range(3):
        alone = image_of(x[i : i + 1])
        again = packed.plan(alone, "ieee")
        tiles = [
            next(tile for tile in one.tiles if str(tile) == str(launch.tiles[0]))
            for one, launch in zip(again, launches, strict=True)
        ]
        (found,) = run_launches(again, x[i : i + 1], alone, tiles, **FORWARDS)
        assert same_bits(found, y[i])


def kinds_of(shape, images):
    packed = kernels_of_cuda().pack(shapes.random_block(shape, seeded(1)), torch.float16, "cpu")
    x = FeatureMap(images, shape.height, shape.width, shape.sizes["in"], torch.float16)
    return [launch.arguments.get("part", launch.kind) for launch in packed.plan(x, "ieee")]


def test_an_ffn_is_whole_where_tiles_are_many_or_maps_large():
    assert kinds_of(shapes.ffn(8, 16, 14, 14), 65) == ["widen", "product"]
    assert kinds_of(shapes.ffn(8, 16, 14, 14), 66) == ["whole"]
    assert kinds_of(shapes.ffn(8, 16, 28, 28, stride=2, residual=0), 65) == ["widen", "product"]
    assert kinds_of(shapes.ffn(8, 16, 28, 28, stride=2, residual=0), 66) == ["whole"]
    assert kinds_of(shapes.ffn(8, 16, 7, 73), 1) == ["widen", "product"]
    assert kinds_of(shapes.ffn(8, 16, 8, 64), 1) == ["whole"]
    assert kinds_of(shapes.ffn(8, 8, 56, 56, without=("fc1",)), 1) == ["narrow"]


def test_widths_of_which_no_tile_fits():
    # Outputs that a block's registers hold, or not, and channels that shared memory does not.
    assert kinds_of(shapes.ffn(8, 16, 56, 56, out=384, residual=0), 5) == ["whole"]
    assert kinds_of(shapes.ffn(8, 16, 56, 56, out=2048, residual=0), 5) == ["widen", "product"]
    assert kinds_of(shapes.ffn(2048, 64, 56, 56, out=64, residual=0), 5) == ["product", "narrow"]
    assert kinds_of(shapes.ffn(2048, 64, 56, 56), 5) == ["product", "depthwise", "product"]
    assert kinds_of(shapes.ffn(2048, 2048, 7, 7, without=("fc1",)), 1) == ["depthwise", "product"]
    assert kinds_of(shapes.stem(128, 64, 64), 1) == ["stem"]
    assert kinds_of(shapes.stem(136, 64, 64), 1) == ["image_conv", "product"]
    with pytest.raises(UnavailableError, match=r"cuda_image_conv: no tile .* 8192 channels in torch.float16"):
        kinds_of(shapes.conv(3, 8192, 8, 8, stride=2), 1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape",
    [
        shapes.ffn(24, 72, 9, 11),
        shapes.ffn(40, 136, 9, 4, activation="relu6"),
        shapes.ffn(8, 8, 1, 1),
        shapes.ffn(16, 40, 17, 9, out=24, stride=2, residual=0, activation="relu6"),
        shapes.ffn(72, 24, 3, 8, residual=0),
    ],
    ids=str,
)
def test_ffn_as_a_whole(shape, dtype):
    (launch,) = check(shape, dtype, plan="whole")
    assert launch.arguments["part"] == "whole"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape",
    [
        shapes.ffn(24, 200, 9, 11),
        shapes.ffn(16, 264, 17, 9, out=24, stride=2, residual=0, activation="relu6"),
        shapes.ffn(176, 704, 7, 7),
    ],
    ids=str,
)
def test_ffn_whose_tiles_are_shared(shape, dtype):
    (launch,) = check(shape, dtype, plan="shared")
    assert all(tile.blocks["splits"] > 1 for tile in launch.tiles)
    assert launch.tile_in_one is None


def test_an_ffn_is_shared_where_tiles_are_few():
    ways = []
    for images in (65, 66):
        packed = kernels_of_cuda().pack(
            shapes.random_block(shapes.ffn(8, 128, 14, 14), seeded(1)), torch.float16, "cpu"
        )
        x = FeatureMap(images, 14, 14, 8, torch.float16)
        ways.append([a.way for a in packed.alternatives(x, "ieee")])
    assert ways == [
        ["by channels", "whole", "in halves", "shared"],
        ["whole", "by channels", "in halves"],
    ]


@pytest.mark.parametrize("kind", ["attention", "attention_downsample"])
def test_bias_that_does_not_fit(kind):
    shape = {
        "attention": shapes.attention(16, 4, 4),
        "attention_downsample": shapes.attention_downsample(16, 24, 4, 4),
    }
    packed = kernels_of_cuda().pack(shapes.random_block(shape[kind], seeded(1)), torch.float16, "cpu")
    with pytest.raises(ResolutionError, match="4x4 tokens, but this input gives 5x4"):
        packed.plan(FeatureMap(1, 5, 4, 16, torch.float16), "ieee")


@pytest.mark.parametrize(
    "shape",
    [
        shapes.stem(12, 9, 9),
        shapes.stem(16, 9, 9, in_channels=1),
        shapes.ffn(16, 36, 5, 5),
        shapes.ffn(12, 24, 5, 5),
        shapes.ffn(16, 40, 5, 5, kernel=5),
        shapes.attention(16, 4, 4, heads=4),
        shapes.attention(16, 4, 4, key_dim=16),
        shapes.attention(16, 4, 4, without=("bias",)),
        shapes.attention_downsample(16, 24, 4, 4, value_dim=32),
        shapes.conv(3, 16, 9, 9),
        shapes.conv(16, 16, 9, 9, kernel=7),
        shapes.conv(16, 12, 9, 9),
        shapes.head(12, 10, 2, 2),
    ],
    ids=str,
)
def test_what_there_is_no_kernel_for_is_refused(shape):
    assert shape.kind in kernels_of_cuda().refusal(shapes.random_block(shape, seeded(1)))


def test_watched_orders_agree():
    """What the watch says does not depend on the order: other seeds, copies early and late."""
    packed, x, _ = packed_case(shapes.ffn(24, 72, 9, 11), torch.float16, 1)
    image = image_of(x)
    launches = packed.plan(image, "ieee")
    orders = [*ORDERS, *({**WATCHED, "seed": seed, "early_copies": seed % 2 == 0} for seed in (0, 1, 7))]
    in_every_order(launches, x, image, orders=orders)
    in_every_order(
        launches, x, image, orders=[FORWARDS, {"seed": 5, "resident": 1}, {"seed": 6, "resident": 3}]
    )
