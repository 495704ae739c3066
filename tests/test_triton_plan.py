"""Plans of S0 to L: launches, bytes and memory. None of it needs a GPU."""

import pytest
import torch
from checks import seeded

pytest.importorskip("triton")

from effv2_kernels import shapes
from effv2_kernels.reference.model import VARIANTS
from effv2_kernels.triton.launch import FeatureMap
from effv2_kernels.triton.memory import lay_out, lifetimes
from effv2_kernels.triton.plan import pack, plan_blocks

LAUNCHES = {"stem": 1, "ffn": 2, "attention": 3, "conv_downsample": 1, "attention_downsample": 4, "head": 1}


def planned(variant, batch, dtype=torch.float16):
    """(block shapes, image, launches of each block)."""
    g = seeded(5)
    made = shapes.network_shapes(VARIANTS[variant])
    packed = [pack(shapes.random_block(shape, g), dtype, "cpu") for shape in made]
    image = FeatureMap(batch, 224, 224, 3, dtype, (3 * 224 * 224, 224 * 224, 224, 1))
    return made, image, plan_blocks(packed, image, "ieee")


@pytest.mark.parametrize(
    ("variant", "launches"),
    [
        ("efficientformerv2_s0", 48),
        ("efficientformerv2_s1", 62),
        ("efficientformerv2_s2", 88),
        ("efficientformerv2_l", 114),
    ],
)
def test_number_of_launches(variant, launches):
    made, _, blocks = planned(variant, 1)
    assert [len(b) for b in blocks] == [LAUNCHES[shape.kind] for shape in made]
    assert sum(map(len, blocks)) == launches


@pytest.mark.parametrize("batch", [1, 32])
def test_activations_that_move(batch):
    """Each launch reads its inputs once and writes its output once; nothing else exists in memory."""
    made, _, blocks = planned("efficientformerv2_s0", batch)
    for shape, launches in zip(made, blocks, strict=True):
        pixels = batch * shape.height * shape.width
        small = batch * -(-shape.height // 2) * -(-shape.width // 2)
        width = shape.sizes["in"]
        moved = sum(
            m.elements
            for launch in launches
            for m in {id(v): v for v in launch.arguments.values() if isinstance(v, FeatureMap)}.values()
        )
        if shape.kind == "ffn":  # x, h | h, x, y: the depthwise result is nowhere
            assert moved == pixels * (3 * width + 2 * shape.sizes["hidden"])
        elif shape.kind == "stem":  # x | y: the map between the convolutions is nowhere
            assert moved == pixels * 3 + batch * 56 * 56 * shape.sizes["out"]
        elif shape.kind == "attention":  # x, qkv | qkv, u | u, x, y: neither logits nor the resized u
            tokens = small if shape.options["stride"] == 2 else pixels
            assert moved == 3 * pixels * width + tokens * 2 * (1536 + 1024)
        elif shape.kind == "attention_downsample":  # x, q | x, kv | q, kv, u | u, x, y
            assert moved == pixels * (3 * width + 2 * 640) + small * (2 * 128 + 2 * 512 + shape.sizes["out"])


def test_multiply_adds_are_those_of_the_network():
    """The products of S0 at 224 x 224: 0.396 G, of which the local branches and resizing are not counted."""
    _, _, blocks = planned("efficientformerv2_s0", 1)
    macs = sum(launch.macs for launches in blocks for launch in launches)
    assert macs == pytest.approx(0.396e9, rel=0.02)


@pytest.mark.parametrize("variant", list(VARIANTS))
@pytest.mark.parametrize("batch", [1, 256])
def test_buffers_alive_together_do_not_overlap(variant, batch):
    _, image, blocks = planned(variant, batch)
    launches = [launch for made in blocks for launch in made]
    outside = {launches[-1].output, blocks[5][-1].output}
    layout = lay_out(launches, outside)
    alive = lifetimes(launches, outside)
    assert image not in layout.offsets
    assert set(layout.offsets) == {launch.output for launch in launches} - outside
    found = list(layout.offsets)
    for i, a in enumerate(found):
        assert layout.offsets[a] % 256 == 0
        assert layout.offsets[a] + a.bytes <= layout.bytes
        for b in found[:i]:
            if alive[a].overlaps(alive[b]):
                first, second = sorted((a, b), key=lambda m: layout.offsets[m])
                assert layout.offsets[first] + first.bytes <= layout.offsets[second]


def test_memory_is_little_more_than_what_is_alive_at_once():
    _, _, blocks = planned("efficientformerv2_s0", 32)
    launches = [launch for made in blocks for launch in made]
    outside = {launches[-1].output}
    alive = lifetimes(launches, outside)
    peak = max(
        sum(m.bytes for m, life in alive.items() if life.first <= i <= life.last)
        for i in range(len(launches))
    )
    assert peak <= lay_out(launches, outside).bytes <= 1.05 * peak
