"""Every GPU kernel under Triton's interpreter against the float64 reference: odd sizes, masks, all tiles."""

import dataclasses

import pytest
import torch
from block_shapes import HEADS
from checks import BLOCK_BOUND, NETWORK_BOUND, assert_close, exact, exact_network, relative_l2, seeded
from models import SMALL, SMALL_MOBILE, MobileSpec

pytest.importorskip("triton")

from bench.gpu import parity
from effv2_kernels import shapes, sources
from effv2_kernels.errors import ResolutionError
from effv2_kernels.families.mobilenet_v2 import scaled
from effv2_kernels.gpu import launch as launch_module
from effv2_kernels.gpu.launch import FeatureMap, tile
from effv2_kernels.gpu.plan import Plan
from effv2_kernels.triton import attention, ffn
from effv2_kernels.triton.feature import Feature
from effv2_kernels.triton.kernels import LIMITS, pack

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
BOUNDS = {torch.float32: BLOCK_BOUND, torch.float16: 5e-3, torch.bfloat16: 5e-3}
NETWORK_BOUNDS = {torch.float32: NETWORK_BOUND, torch.float16: 2e-2, torch.bfloat16: 2e-2}

_GUARD = 64  # elements before and after every buffer


class Memory:
    """Buffers in NaN, with NaN on both sides that must survive."""

    def __init__(self):
        self.tensors = {}
        self._whole = []

    def add(self, feature_map, values=None):
        whole = torch.full((feature_map.elements + 2 * _GUARD,), float("nan"), dtype=feature_map.dtype)
        self._whole.append(whole)
        tensor = whole[_GUARD:-_GUARD]
        if values is not None:
            tensor.copy_(values.reshape(-1))
        self.tensors[feature_map] = tensor

    def check(self):
        for whole in self._whole:
            assert bool(whole[:_GUARD].isnan().all()), "a kernel wrote before a buffer"
            assert bool(whole[-_GUARD:].isnan().all()), "a kernel wrote behind a buffer"


def first_tile(launch):
    return launch.tiles[:1]


def run_launches(launches, x, image, *, choose=first_tile):
    """The output (N, C, H, W) of launches for the image x: (N, C, H, W); ``image`` is its feature map.

    choose: the tiles of a launch. It runs with each, on the same inputs; what follows reads what the last one
    wrote, and they differ by their rounding alone.
    """
    memory = Memory()
    memory.add(image, x if image.strides else x.permute(0, 2, 3, 1))
    for launch in launches:
        outputs = []
        for one in choose(launch):
            for buffer in launch.written:
                memory.add(buffer)
            launch.run(one, memory.tensors)
            outputs.append(memory.tensors[launch.output].double())
            error = relative_l2(outputs[-1], outputs[0])
            assert error <= BOUNDS[x.dtype], f"{launch.name} with {one}: {error:.1e} off another tile"
    memory.check()
    y = launches[-1].output
    return memory.tensors[y].view(y.images, y.height, y.width, y.channels).permute(0, 3, 1, 2)


def map_of(x, strides=None):
    return FeatureMap(x.shape[0], x.shape[2], x.shape[3], x.shape[1], x.dtype, strides)


def check(shape, dtype, batch=2, *, plan="plan", change=lambda launch: launch, choose=first_tile):
    """A block of some shape against float64. plan: the method that makes its launches."""
    g = seeded(shape.height * 131 + shape.width)
    block = shapes.random_block(shape, g)
    x = shapes.random_input(shape, g, batch).to(dtype)
    expected = exact(block, x)
    packed = pack(block, dtype, "cpu")
    image = map_of(x, x.stride() if packed.reads_any_layout else None)
    launches = [change(launch) for launch in getattr(packed, plan)(image, "ieee")]
    y = run_launches(launches, x, image, choose=choose).float()
    assert_close(y.reshape(expected.shape), expected, BOUNDS[dtype], f"{shape} {dtype}")


def check_every_tile(shape, dtype):
    """Each launch with each of its tiles, the first one last: its output goes on."""
    check(shape, dtype, choose=lambda launch: launch.tiles[::-1])


# The interpreter needs as long for a block of 8 heads as for four of 4: the published number once per kernel.
CASES = [
    shapes.stem(16, 13, 18),
    shapes.stem(40, 7, 6, in_channels=1),
    shapes.stem(8, 9, 9, in_channels=16),  # a patch of 144 values, more than are taken at once
    shapes.ffn(24, 72, 5, 7),
    shapes.ffn(40, 132, 9, 4),
    shapes.ffn(8, 8, 1, 1),
    shapes.attention(24, 5, 7),
    shapes.attention(24, 9, 7, stride=2, **HEADS),  # odd, so the resized map is cropped
    shapes.attention(16, 1, 1, stride=2, **HEADS),
    shapes.attention(40, 3, 4, table=(7, 7), **HEADS),  # a resized bias
    shapes.attention(16, 9, 9, heads=4, key_dim=16, value_dim=24),  # two passes over the keys
    shapes.attention(16, 12, 13, heads=2, key_dim=8, value_dim=8),  # bias by distance
    shapes.conv(24, 40, 7, 5, stride=2),
    shapes.conv(40, 72, 4, 6, stride=2),
    shapes.attention_downsample(24, 40, 7, 5),
    shapes.attention_downsample(16, 24, 3, 4, table=(7, 7), **HEADS),
    shapes.attention_downsample(16, 24, 15, 14, heads=3, key_dim=8, value_dim=24),  # bias by distance
    shapes.head(24, 10, 3, 5),
    shapes.head(40, 3, 1, 1),
]


def halves_thorough(cases, newcomers=()):
    """Each shape in float32, whose bound is the narrow one; most of the other dtypes are left to test-all."""
    return [
        pytest.param(
            shape,
            dtype,
            id=f"{shape}-{dtype}",
            marks=() if dtype == torch.float32 or shape in newcomers else pytest.mark.thorough,
        )
        for shape in cases
        for dtype in DTYPES
    ]


@pytest.fixture
def many_pixels(monkeypatch):
    """Blocks are cut as those of large batches are, whatever their size."""
    monkeypatch.setattr(ffn, "_SMALL_MAP", 0)
    monkeypatch.setattr(ffn, "_FEW_PIXELS", 0)
    monkeypatch.setattr(attention, "_MANY_PROGRAMS", 0)


# What is cut in another way where pixels are many.
CUT = [
    shapes.ffn(24, 72, 5, 7),
    shapes.ffn(40, 132, 9, 4),
    shapes.ffn(8, 8, 1, 1),
    shapes.attention(24, 9, 7, stride=2, **HEADS),
    shapes.attention(16, 1, 1, stride=2, **HEADS),
    shapes.ffn(24, 72, 9, 6, out=40, stride=2, residual=0, activation="relu6"),
    shapes.ffn(24, 24, 5, 7, out=16, residual=0, activation="relu6", without=("fc1",)),
]
# In every dtype for newcomers as well: one of each kind that has kernels.
FIRST = [next(shape for shape in CASES if shape.kind == kind) for kind in LIMITS]
FIRST[FIRST.index(shapes.attention(24, 5, 7))] = shapes.attention(40, 3, 4, table=(7, 7), **HEADS)


@pytest.mark.parametrize(("shape", "dtype"), halves_thorough(CASES, FIRST))
def test_block(shape, dtype):
    check(shape, dtype, batch=5 if shape.kind == "head" else 2)


@pytest.mark.parametrize(("shape", "dtype"), halves_thorough(CUT))
def test_block_of_many_pixels(shape, dtype, many_pixels):
    check(shape, dtype)


@pytest.mark.thorough
@pytest.mark.parametrize("shape", [*CUT[1:5:2], *CUT[5:]], ids=str)
def test_every_tile_of_many_pixels(shape, many_pixels):
    check_every_tile(shape, torch.float16)


@pytest.mark.parametrize("width", [5, 16])
@pytest.mark.parametrize("band", [1, 2, 3])
def test_bands_of_rows(band, width):
    """Rows above and below a band are made by two programs."""

    def cut(launch):
        first = launch.tiles[0]
        if "BAND" not in first.blocks:
            return launch
        return dataclasses.replace(launch, tiles=[tile(4, 1, **{**first.blocks, "BM": 16, "BAND": band})])

    check(shapes.ffn(16, 24, 7, width), torch.float32, change=cut)


def test_the_way_to_cut_follows_the_number_of_pixels():
    def kernels(shape, images):
        packed = pack(shapes.random_block(shape, seeded(1)), torch.float16, "cpu")
        x = FeatureMap(images, shape.height, shape.width, shape.sizes["in"], torch.float16)
        return [launch.name for launch in packed.plan(x, "ieee")]

    assert kernels(shapes.ffn(8, 16, 7, 7), 1000) == ["hidden", "product"]
    assert kernels(shapes.ffn(8, 16, 56, 56), 2) == ["hidden", "product"]
    assert kernels(shapes.ffn(8, 16, 56, 56), 3) == ["product", "product"]
    # Of the output, which programs share.
    strided = shapes.ffn(8, 16, 112, 112, stride=2, residual=0)
    assert kernels(strided, 2) == ["hidden", "product"]
    assert kernels(strided, 3) == ["product", "product"]
    narrow = shapes.ffn(8, 8, 56, 56, residual=0, without=("fc1",))
    assert kernels(narrow, 2) == ["depthwise", "product"]
    assert kernels(narrow, 3) == ["product"]


@pytest.mark.thorough
def test_attention_of_s0_in_bfloat16():
    """With the numbers of bench/gpu/parity.py, which a GPU found 5.06e-3 off, and the interpreter 5.03e-3."""
    shape = shapes.family_shapes()["s0-attention-96-s2-14x14"]
    (row,) = parity.check_block("attention", shape, "bf16", 1, torch.device("cpu"))
    assert row.ok, row


ONE_OF_EACH = [
    shapes.stem(16, 13, 9),
    shapes.ffn(24, 40, 3, 5),
    shapes.attention(24, 3, 5, stride=2, **HEADS),
    shapes.attention(16, 9, 8, heads=4, key_dim=16, value_dim=16),
    shapes.conv(24, 40, 5, 3, stride=2),
    shapes.attention_downsample(24, 40, 5, 3, **HEADS),
    shapes.head(24, 10, 3, 2),
    shapes.ffn(24, 40, 3, 6, out=16, stride=2, residual=0, activation="relu6"),
    shapes.ffn(24, 24, 3, 5, activation="relu6", without=("fc1",)),
    shapes.conv(3, 24, 5, 3, stride=2, activation="relu6"),
    shapes.conv(24, 40, 5, 3, activation="relu6"),
    shapes.conv(24, 40, 5, 3, kernel=1, activation="relu6"),
]


@pytest.mark.thorough
@pytest.mark.parametrize("shape", ONE_OF_EACH, ids=str)
def test_every_tile(shape):
    """All candidates that tuning may choose compute the same."""
    check_every_tile(shape, torch.float16)


@pytest.mark.thorough
@pytest.mark.parametrize("shape", ONE_OF_EACH, ids=str)
def test_addresses_of_64_bits(shape):
    def widen(launch):
        return dataclasses.replace(launch, constants={**launch.constants, "WIDE": True})

    check(shape, torch.float32, change=widen)


def test_wide_is_chosen_by_size():
    """Of images, rows, columns and channels; not of what the GPU can hold."""
    block = shapes.random_block(shapes.ffn(8, 32, 56, 56), seeded(1))
    packed = pack(block, torch.float16, "cpu")
    images = -(-(2**31) // (56 * 56 * 32))
    few, many = (packed.plan(FeatureMap(n, 56, 56, 8, torch.float16), "ieee") for n in (images - 1, images))
    assert [launch.constants["WIDE"] for launch in few] == [False, False]
    assert [launch.constants["WIDE"] for launch in many] == [True, True]


@pytest.mark.parametrize(
    ("shape", "kernel", "largest"),
    [
        (shapes.attention(16, 17, 17, table=(9, 9)), "mixed_softmax", "y_ptr"),
        (shapes.attention_downsample(16, 24, 17, 17, table=(9, 9)), "downsample_attention", "bias_ptr"),
    ],
    ids=str,
)
def test_what_there_is_for_each_query_and_key_is_wide(shape, kernel, largest, monkeypatch):
    """It can be the largest tensor of all."""
    packed = pack(shapes.random_block(shape, seeded(1)), torch.float16, "cpu")
    x = FeatureMap(1, 17, 17, 16, torch.float16)

    def launch():
        return {launch.name: launch for launch in packed.plan(x, "ieee")}[kernel]

    value = launch().arguments[largest]
    elements = value.reach if isinstance(value, FeatureMap) else value.numel()
    for limit, wide in ((elements, True), (elements + 1, False)):
        monkeypatch.setattr(launch_module, "WIDE_ELEMENTS", limit)
        assert launch().constants["WIDE"] is wide


@pytest.mark.parametrize(
    "shape",
    [shapes.stem(16, 9, 11), shapes.conv(3, 16, 9, 11, stride=2, activation="relu6")],
    ids=str,
)
def test_what_takes_images_reads_any_strides(shape, generator):
    block = shapes.random_block(shape, generator)
    x = shapes.random_input(shape, generator, 2)
    packed = pack(block, torch.float32, "cpu")
    expected = exact(block, x)
    channels_last = x.contiguous(memory_format=torch.channels_last)
    image = map_of(x, channels_last.stride())
    y = run_launches(packed.plan(image, "ieee"), x.permute(0, 2, 3, 1), image)
    assert_close(y, expected, BLOCK_BOUND)


@pytest.mark.parametrize("kind", ["attention", "attention_downsample"])
def test_bias_that_does_not_fit(kind):
    shape = {
        "attention": shapes.attention(16, 4, 4),
        "attention_downsample": shapes.attention_downsample(16, 24, 4, 4),
    }
    packed = pack(shapes.random_block(shape[kind], seeded(1)), torch.float16, "cpu")
    with pytest.raises(ResolutionError, match="4x4 tokens, but this input gives 5x4"):
        packed.plan(FeatureMap(1, 5, 4, 16, torch.float16), "ieee")


def not_a_number(plan):
    """Memory that is NaN in every dtype: what shares bytes with a dead buffer must not read it."""
    return torch.full((plan.bytes,), 0xFF, dtype=torch.uint8)


# One of each family, and MobileNetV2 as it is published.
PUBLISHED = [MobileSpec(f"mobilenet_v2 x{width}", scaled(width), (33, 40)) for width in (0.5, 1.0, 1.4)]
NETWORKS = {spec.name: spec for spec in (SMALL[0], SMALL_MOBILE[0], *PUBLISHED)}
_QUICK = {(spec.name, torch.float32) for spec in (SMALL[0], SMALL_MOBILE[0])}


def networks_and_dtypes():
    """The small ones in every dtype; of the published, which take the interpreter a minute, each in one."""
    in_one = dict(zip((spec.name for spec in PUBLISHED), DTYPES, strict=True))
    for name in NETWORKS:
        for dtype in [in_one[name]] if name in in_one else DTYPES:
            marks = () if (name, dtype) in _QUICK else pytest.mark.thorough
            yield pytest.param(name, dtype, id=f"{name}-{dtype}", marks=marks)


@pytest.mark.parametrize(("name", "dtype"), list(networks_and_dtypes()))
def test_network(name, dtype, generator):
    """Of another size than that of test_gpu_engine, which newcomers run in every dtype."""
    spec = NETWORKS[name]
    network = sources.read(spec.build(generator))
    x = spec.images(generator, batch=2).to(dtype)
    (expected,) = exact_network(network, x)
    packed = [pack(block, dtype, "cpu") for block in network.blocks]
    plan = Plan(packed, map_of(x, x.stride()), [(len(packed) - 1, None)], "ieee")
    arena = not_a_number(plan)
    for _ in range(2 if dtype == torch.float32 else 1):
        (y,) = plan.run(x, arena)
        assert_close(y.float().reshape(expected.shape), expected, NETWORK_BOUNDS[dtype], str(dtype))


NORMS = (True, False, True, False)


@pytest.mark.parametrize(
    ("spec", "norms", "options"),
    [
        pytest.param(SMALL[0], (False,) * 4, {"num_classes": 0}, id="plain", marks=pytest.mark.thorough),
        pytest.param(SMALL[0], NORMS, {"num_classes": 0, "feature_norms": NORMS}, id="norms"),
        pytest.param(SMALL_MOBILE[0], (False,) * 3, {}, id="mobilenet_v2"),
    ],
)
def test_feature_maps(generator, spec, norms, options):
    """A backbone keeps the outputs of some blocks, or their BatchNorm, while later ones run."""
    network = sources.read(spec.build(generator, features_only=True, **options))
    x = spec.images(generator)
    expected = exact_network(network, x)
    packed = [pack(block, torch.float32, "cpu") for block in network.blocks]
    outputs = [(f.block, None if f.scale is None else Feature(f, "cpu")) for f in network.features]
    assert tuple(feature is not None for _, feature in outputs) == norms
    plan = Plan(packed, map_of(x, x.stride()), outputs, "ieee")
    for y, y_expected in zip(plan.run(x, not_a_number(plan)), expected, strict=True):
        assert_close(y, y_expected, NETWORK_BOUND)
