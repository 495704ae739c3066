"""Every shape that a CUDA kernel is compiled for, in the emulator, and what no block asks of a kernel."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from checks import assert_close, same_bits, seeded
from emulated_cuda import (
    BACKWARDS,
    DTYPES,
    FORWARDS,
    UNIT,
    WATCHED,
    Memory,
    bound_of,
    buffers_of,
    compiled_shapes,
    configure,
    fitting,
    image_of,
    needs_emulator,
    one_thread,
    packed_case,
    passes_by_place,
    reset_counts,
    rounded,
    run_launch,
    run_launches,
    tensor_buffer,
    with_every_tile,
)

from effv2_kernels import blocks, shapes
from effv2_kernels.declaration import ACTIVATIONS
from effv2_kernels.gpu.launch import FeatureMap
from effv2_kernels.reference.activation import activate

pytestmark = needs_emulator


@pytest.fixture(autouse=True)
def quiet_pytorch():
    with one_thread():
        yield


# --- Every tile of a block's launches --------------------------------------------------------------------


def names_of(ran, kind):
    return {name for found, name in ran if found == kind}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("plan", "part", "shape"),
    [
        # With so many outputs that each shape has a tile that fills its registers.
        ("whole", "ffn", shapes.ffn(24, 72, 9, 15, out=168, residual=0)),
        ("whole", "ffn", shapes.ffn(16, 40, 8, 8)),
        ("by_channels", "widen", shapes.ffn(24, 72, 9, 15)),
        ("narrow", "ffn", shapes.ffn(72, 72, 9, 15, out=168, residual=0, without=("fc1",))),
    ],
    ids=str,
)
def test_every_tile_of_an_ffn(plan, part, shape, dtype):
    ran = with_every_tile(shape, dtype, plan=plan, orders=(FORWARDS, WATCHED))
    assert names_of(ran, "widen" if plan == "by_channels" else plan) == set(compiled_shapes()[part])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_tile_of_a_strided_ffn(dtype):
    shape = shapes.ffn(16, 40, 17, 13, out=24, stride=2, residual=0, activation="relu6")
    for plan in ("whole", "by_channels"):
        with_every_tile(shape, dtype, plan=plan, orders=(BACKWARDS,))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_tile_of_a_stem(dtype):
    # One that needs four products of a warp, and one that needs one.
    ran = with_every_tile(shapes.stem(96, 37, 61), dtype, orders=(FORWARDS,))
    ran |= with_every_tile(shapes.stem(16, 13, 35), dtype, orders=(FORWARDS, WATCHED))
    assert names_of(ran, "stem") == set(compiled_shapes()["stem"])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_tile_of_a_convolution_of_images(dtype):
    with_every_tile(shapes.conv(3, 40, 19, 62, stride=2), dtype, orders=(FORWARDS, WATCHED))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_tile_of_an_attention(dtype):
    ran = with_every_tile(shapes.attention(16, 5, 7), dtype, orders=(FORWARDS, WATCHED))
    ran |= with_every_tile(shapes.attention(16, 9, 8), dtype, orders=(FORWARDS,))
    assert names_of(ran, "attention") == set(compiled_shapes()["attention"])
    assert names_of(ran, "pixels") == set(compiled_shapes()["product"])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_tile_of_an_attention_downsample(dtype):
    ran = with_every_tile(shapes.attention_downsample(16, 24, 5, 6), dtype, orders=(FORWARDS, WATCHED))
    assert names_of(ran, "joined") == set(compiled_shapes()["product"])


# --- Products --------------------------------------------------------------------------------------------


class ProductCase:
    """A source of the product's left factor. Its maps are larger than the largest tile, and cut by it."""

    outputs = 72

    def __init__(self, dtype, g):
        self.dtype, self.g = dtype, g
        self.maps, self.values = {}, {}

    def map(self, images, height, width, channels):
        made = FeatureMap(images, height, width, channels, self.dtype)
        self.maps[made] = torch.randn(images, height, width, channels, generator=self.g).to(self.dtype)
        return made, self.maps[made].double().permute(0, 3, 1, 2)

    def weight(self, *size):
        return torch.randn(self.outputs, *size, generator=self.g) * (torch.Size(size).numel() ** -0.5)

    def bias(self):
        return torch.randn(self.outputs, generator=self.g)


def pixels(case, activation):
    """With a residual; eight values of a depth that is no multiple of 16, and of 64."""
    from effv2_kernels.cuda import packing, product

    x, exact_x = case.map(2, 9, 11, 136)
    residual, exact_residual = case.map(2, 9, 11, case.outputs)
    w, b = case.weight(136), case.bias()
    launch = product.pointwise_product(
        x, packing.right_factor(w, case.dtype, "cpu"), packing.bias_of_product(b, "cpu"), case.outputs,
        activation=activation, residual=residual,
    )  # fmt: skip
    product_of_pixels = F.conv2d(exact_x, w.double()[:, :, None, None], b.double())
    return launch, activate(product_of_pixels, activation) + exact_residual


def window(case, activation):
    from effv2_kernels.cuda import packing, product

    x, exact_x = case.map(2, 17, 21, 24)
    w, b = case.weight(24, 3, 3), case.bias()
    launch = product.window_product(
        x, packing.window_factor(w, case.dtype, "cpu"), packing.bias_of_product(b, "cpu"), case.outputs,
        kernel=3, stride=2, activation=activation,
    )  # fmt: skip
    return launch, activate(F.conv2d(exact_x, w.double(), b.double(), 2, 1), activation)


def joined(case, activation):
    """It has no activation."""
    from effv2_kernels.cuda import packing, product

    u, exact_u = case.map(2, 9, 11, 64)
    x, exact_x = case.map(2, 18, 21, 24)
    w, of_x, b = case.weight(64), case.weight(24, 3, 3), case.bias()
    both = torch.cat([w, packing.by_tap(of_x)], 1)
    launch = product.joined_product(
        u, x, packing.right_factor(both, case.dtype, "cpu"), packing.bias_of_product(b, "cpu"), case.outputs,
        stride=2,
    )  # fmt: skip
    of_u = F.conv2d(exact_u, w.double()[:, :, None, None], b.double())
    return launch, of_u + F.conv2d(exact_x, of_x.double(), None, 2, 1)


def enlarged(case, activation):
    """Cropped, and activated before the product."""
    from effv2_kernels.cuda import packing, product

    u, exact_u = case.map(2, 5, 6, 40)
    x, exact_x = case.map(2, 9, 11, case.outputs)
    w, b = case.weight(40), case.bias()
    launch = product.enlarged_product(
        u, packing.right_factor(w, case.dtype, "cpu"), packing.bias_of_product(b, "cpu"), x,
        activation=activation,
    )  # fmt: skip
    large = F.interpolate(exact_u, scale_factor=2, mode="bilinear", align_corners=False)[:, :, :9, :11]
    return launch, exact_x + F.conv2d(activate(large, activation), w.double()[:, :, None, None], b.double())


SOURCES = {made.__name__: made for made in (pixels, window, joined, enlarged)}


def run_on(launch, values, tile, **how):
    """The output (N, C, H, W) for given values of its maps."""
    memory = Memory()
    for m in launch.maps:
        if m in values:
            memory.add(m)
            memory.tensors[m].copy_(values[m].flatten())
    run_launch(launch, memory, tile, **how)
    memory.check()
    return memory.nchw(launch.output)


def check_launch(launch, values, expected, bound, orders=(FORWARDS, BACKWARDS, WATCHED), tiles=None):
    for tile in tiles or launch.tiles:
        outputs = [run_on(launch, values, tile, **how) for how in orders]
        assert all(same_bits(y, outputs[0]) for y in outputs), str(tile)
        assert_close(outputs[0], expected, bound, f"{launch.name} with {tile}", launch.dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("source", SOURCES)
def test_every_tile_of_a_product(source, dtype):
    case = ProductCase(dtype, seeded(21))
    launch, expected = SOURCES[source](case, "relu6")
    assert {tile.name for tile in launch.tiles} == set(compiled_shapes()["product"])
    check_launch(launch, case.maps, expected, rounded(4 if source == "enlarged" else 2, dtype))


@pytest.mark.parametrize("source", ["pixels", "window", "enlarged"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_of_a_product(activation, source):
    for dtype in DTYPES:
        case = ProductCase(dtype, seeded(22))
        launch, expected = SOURCES[source](case, activation)
        check_launch(launch, case.maps, expected, rounded(6, dtype), (FORWARDS,), launch.tiles[:1])


@pytest.mark.parametrize("outputs", [1, 7, 8, 31, 33, 100])
def test_any_number_of_outputs(outputs):
    for dtype in DTYPES:
        case = ProductCase(dtype, seeded(23))
        case.outputs = outputs
        launch, expected = pixels(case, "none")
        check_launch(launch, case.maps, expected, rounded(2, dtype), (FORWARDS, WATCHED))


# --- The others ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ["none", "gelu", "hardswish"])
@pytest.mark.parametrize(
    ("stride", "channels", "height", "width"), [(1, 24, 5, 9), (2, 24, 6, 29), (2, 8, 1, 1), (1, 520, 3, 4)]
)
def test_depthwise(stride, channels, height, width, activation, dtype):
    from effv2_kernels.cuda.depthwise import depthwise
    from effv2_kernels.gpu.packing import taps, vector

    case = ProductCase(dtype, seeded(24))
    x, exact_x = case.map(3, height, width, channels)
    w, b = torch.randn(channels, 3, 3, generator=case.g) / 3, torch.randn(channels, generator=case.g)
    launch = depthwise(x, taps(w, dtype, "cpu"), vector(b, "cpu"), stride=stride)
    launch = dataclasses.replace(launch, arguments={**launch.arguments, "activation": activation})
    expected = F.conv2d(exact_x, w.double()[:, None], b.double(), stride, 1, groups=channels)
    check_launch(launch, case.maps, activate(expected, activation), rounded(10, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("images", "height", "width", "channels"), [(1, 7, 7, 48), (5, 3, 4, 600), (300, 1, 1, 8)]
)
def test_mean(images, height, width, channels, dtype):
    from effv2_kernels.cuda.head import Head

    case = ProductCase(dtype, seeded(25))
    x, exact_x = case.map(images, height, width, channels)
    block = shapes.random_block(shapes.head(channels, 3, height, width), case.g)
    launch = Head(block, dtype, "cpu").plan(x, "ieee")[0]
    check_launch(launch, case.maps, exact_x.mean((2, 3), keepdim=True), rounded(2, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("images", "height", "width", "channels"), [(1, 7, 7, 48), (2, 5, 9, 600), (3, 1, 1, 8)]
)
def test_feature(images, height, width, channels, dtype):
    from effv2_kernels.cuda.feature import Feature

    case = ProductCase(dtype, seeded(26))
    x, exact_x = case.map(images, height, width, channels)
    scale, shift = (torch.randn(channels, generator=case.g) for _ in range(2))
    launch = Feature(blocks.Feature(0, scale=scale, shift=shift), "cpu").plan(x, "ieee")[0]
    expected = exact_x * scale.double()[:, None, None] + shift.double()[:, None, None]
    check_launch(launch, case.maps, expected, rounded(2, dtype))


# --- An FFN whose tiles several blocks of threads share --------------------------------------------------


def shared_by(launches, splits, items):
    """The only launch with tiles of 4 x 7 that so many share; its counters, and the room for their sums."""
    (launch,) = launches
    sizes = {"tile_height": 4, "tile_width": 7, "splits": 1}
    alone = next(t for t in launch.tiles if t.blocks == sizes and t.name == items)
    places = launch.own_step(alone).extent.tiles
    tile = dataclasses.replace(alone, blocks={**sizes, "splits": splits})
    most = int(items.split("x")[1])
    parts = torch.full((places * splits * most * 4 * 256 * 4,), torch.nan)
    arrivals = torch.zeros(2 * places, dtype=torch.int32)
    arguments = {**launch.arguments, "parts": parts, "arrivals": arrivals}
    return dataclasses.replace(launch, arguments=arguments, _steps={}), tile, parts, arrivals


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("splits", [2, 4])
@pytest.mark.parametrize("items", ["64x1", "32x3"])
@pytest.mark.parametrize(
    ("plan", "shape"),
    [
        ("whole", shapes.ffn(24, 200, 5, 8)),
        ("narrow", shapes.ffn(72, 72, 5, 8, out=40, residual=0, without=("fc1",))),
    ],
    ids=str,
)
def test_shared_tiles(plan, shape, items, splits, dtype):
    """Twice, since counters go on from launch to launch; with more that share than there are slices, too."""
    packed, x, expected = packed_case(shape, dtype, 2)
    image = image_of(x)
    launch, tile, parts, arrivals = shared_by(getattr(packed, plan)(image), splits, items)
    found = []
    for how in (FORWARDS, BACKWARDS, {"seed": 3, "resident": 2}, WATCHED, {**WATCHED, "seed": 4}):
        parts.fill_(torch.nan)
        memory = Memory()
        memory.give(image, x)
        memory.add(launch.output)
        configure(**how)
        named = buffers_of(launch, memory)
        named["parts"] = tensor_buffer("parts", parts, writable=True)
        named["arrivals"] = tensor_buffer("arrivals", arrivals, writable=True)
        named["arrivals"].is_written()
        launch.run(tile, memory.tensors)
        del named
        memory.check()
        found.append(memory.nchw(launch.output))
    assert bool((arrivals == 5 * splits).all())
    assert all(same_bits(y, found[0]) for y in found)
    assert_close(found[0], expected, bound_of(shape, dtype), f"{shape} {dtype} by {splits}", dtype)
    alone = run_launches(getattr(packed, plan)(image), x, image, **FORWARDS)
    assert_close(found[0], alone.double(), 2 * UNIT[dtype], "shared or not", dtype)


def test_a_shape_that_there_is_not_has_no_tiles():
    packed, x, _ = packed_case(shapes.ffn(16, 40, 5, 7), torch.float16)
    (launch,) = packed.whole(image_of(x))
    assert launch.own_step(launch.tiles[0]).extent.tiles
    beyond = dataclasses.replace(launch.tiles[0], number=9, name="9")
    assert launch.own_step(beyond).extent.tiles == 0


# --- Banks of shared memory ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plan", "shape"),
    [
        ("plan", shapes.conv(24, 72, 9, 7)),
        ("whole", shapes.ffn(40, 136, 9, 11)),
        ("by_channels", shapes.ffn(40, 136, 9, 11)),
        ("plan", shapes.attention(16, 5, 7)),
        ("plan", shapes.attention_downsample(16, 24, 5, 7)),
    ],
    ids=str,
)
def test_fragments_meet_in_no_bank(plan, shape):
    """What rows of both factors are padded for (fragments.h)."""
    packed, x, _ = packed_case(shape, torch.float16, 1)
    image = image_of(x)
    launches = getattr(packed, plan)(image, *(["ieee"] if plan == "plan" else []))
    for launch in launches:
        memory = Memory()
        for m in launch.maps:
            memory.add(m)
        for tile in fitting(launch):
            reset_counts()
            run_launch(launch, memory, tile, count_passes=True)
            for place, (accesses, passes) in passes_by_place().items():
                assert passes == accesses or not place.startswith("fragments.h"), (str(tile), place)
