"""The launches of whole networks, and what they read and write. None of it needs a GPU."""

import pytest
import torch
from checks import seeded

pytest.importorskip("triton")

from effv2_kernels import shapes
from effv2_kernels.families import families
from effv2_kernels.gpu.launch import FeatureMap
from effv2_kernels.gpu.plan import plan_blocks
from effv2_kernels.triton.kernels import pack

# The shapes of the blocks of every variant of every family.
VARIANTS = {variant: family.variant_shapes(variant) for family in families() for variant in family.VARIANTS}
S0, MOBILE = "efficientformerv2_s0", "mobilenetv2_100"
SOME = [
    name for name in VARIANTS if name.startswith("efficientformerv2") or name in (MOBILE, "mobilenetv2_140")
]

LAUNCHES = {"stem": 2, "ffn": 2, "attention": 4, "conv": 1, "attention_downsample": 5, "head": 2}


def is_strided(shape):
    """Whether an attention block resizes: its depthwise convolution and that have launches of their own."""
    return shape.kind == "attention" and shape.options["stride"] == 2


def output_pixels(shape):
    stride = int(shape.options.get("stride", 1))
    return -(-shape.height // stride) * -(-shape.width // stride)


def is_cut_by_channels(shape, batch):
    """See effv2_kernels.triton.ffn."""
    return output_pixels(shape) <= 64 or batch * output_pixels(shape) <= 8192


def number_of_launches(shape, batch):
    if "fc1" in shape.without and not is_cut_by_channels(shape, batch):
        return 1
    return LAUNCHES[shape.kind] + 2 * is_strided(shape)


def planned(variant, batch, dtype=torch.float16):
    """(block shapes, image, launches of each block)."""
    g = seeded(5)
    made = VARIANTS[variant]
    packed = [pack(shapes.random_block(shape, g), dtype, "cpu") for shape in made]
    image = FeatureMap(batch, 224, 224, 3, dtype, (3 * 224 * 224, 224 * 224, 224, 1))
    return made, image, [chosen.alternative.launches for chosen in plan_blocks(packed, image, "ieee")]


@pytest.mark.parametrize(
    ("variant", "launches"),
    [
        ("efficientformerv2_s0", 59),
        ("efficientformerv2_s1", 73),
        ("efficientformerv2_s2", 107),
        ("efficientformerv2_l", 141),
        ("mobilenetv2_100", 37),
        ("mobilenetv2_140", 37),
    ],
)
def test_number_of_launches(variant, launches):
    for batch in (1, 32):
        made, _, blocks = planned(variant, batch)
        assert [len(b) for b in blocks] == [number_of_launches(shape, batch) for shape in made]
        assert sum(map(len, blocks)) == launches


@pytest.mark.parametrize("variant", [S0, MOBILE])
@pytest.mark.parametrize("batch", [1, 32])
def test_activations_that_move(batch, variant):
    """Each launch reads its inputs once and writes its output once; nothing else exists in memory."""
    made, _, blocks = planned(variant, batch)
    for shape, launches in zip(made, blocks, strict=True):
        pixels = batch * shape.height * shape.width
        small = batch * -(-shape.height // 2) * -(-shape.width // 2)
        width = shape.sizes["in"]
        moved = sum(
            m.elements
            for launch in launches
            for m in {id(v): v for v in launch.arguments.values() if isinstance(v, FeatureMap)}.values()
        )
        if shape.kind == "ffn":
            hidden, out_pixels = shape.sizes["hidden"], batch * output_pixels(shape)
            # x, h, d | d, x, y; or without d, the depthwise result: x, h | h, x, y. Without a residual no
            # second x, and without fc1 x is h.
            expected = out_pixels * shape.sizes.get("out", width)
            expected += pixels * width * (1 + shape.options.get("residual", 1))
            if "fc1" not in shape.without:
                expected += pixels * hidden * (1 if is_cut_by_channels(shape, batch) else 2)
            if is_cut_by_channels(shape, batch):
                expected += 2 * out_pixels * hidden
            assert moved == expected
        elif shape.kind == "conv":  # x, y
            assert moved == pixels * width + batch * output_pixels(shape) * shape.sizes["out"]
        elif shape.kind == "stem":  # x, m | m, y
            out = shape.sizes["out"]
            assert moved == pixels * 3 + batch * (2 * 112 * 112 * out // 2 + 56 * 56 * out)
        elif shape.kind == "attention":  # x, qkv | qkv, shares | qkv, shares, u | u, x, y: no logits
            tokens = small if is_strided(shape) else pixels
            # And x, small x | small x, qkv; u, resized u | resized u, x, y.
            strided = 2 * tokens * width + 2 * 1024 * pixels if is_strided(shape) else 0
            shares = 8 * tokens * 64
            assert moved == 3 * pixels * width + tokens * (3 * 1536 + 2 * 1024) + 2 * shares + strided
        elif shape.kind == "head":  # x, mean | mean, logits
            assert moved == pixels * width + batch * (2 * width + 1000)
        elif shape.kind == "attention_downsample":  # x, small x | small x, q | x, kv | q, kv, u | u, x, y
            of_small = 2 * width + 2 * 128 + 2 * 512 + shape.sizes["out"]
            assert moved == pixels * (3 * width + 2 * 640) + small * of_small


@pytest.mark.parametrize(
    ("variant", "published"), [(S0, 0.396e9), (MOBILE, 0.300e9), ("mobilenetv2_140", 0.582e9)]
)
def test_multiply_adds_are_those_of_the_network(variant, published):
    """At 224 x 224; of S0 the local branches and resizing are not counted."""
    _, _, blocks = planned(variant, 1)
    macs = sum(launch.macs for launches in blocks for launch in launches)
    assert macs == pytest.approx(published, rel=0.02)
