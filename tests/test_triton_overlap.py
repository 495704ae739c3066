"""Launches that begin while the one before them ends: each waits before it touches their buffers."""

import importlib

import pytest
import torch
from block_shapes import HEADS
from checks import assert_close, exact, seeded

pytest.importorskip("triton")

from test_triton_kernels import BOUNDS, many_pixels, map_of  # noqa: F401

from effv2_kernels import blocks, shapes
from effv2_kernels.triton.feature import Feature
from effv2_kernels.triton.launch import overlaps, tile
from effv2_kernels.triton.plan import execute, pack

KERNELS = ("product", "feature", *blocks.BLOCK_TYPES)


class Waiting:
    """What a launch reads is NaN, and what it writes has to be, until its first program waits."""

    def __init__(self, monkeypatch):
        for name in KERNELS:
            module = importlib.import_module(f"effv2_kernels.triton.{name}")
            if hasattr(module, "wait_for_earlier_launches"):
                monkeypatch.setattr(module, "wait_for_earlier_launches", lambda OVERLAP: self.wait())
        self.waits = 0

    def run(self, launch, memory):
        self.written = [memory[m] for m in launch.written]
        self.read = {
            m: memory[m].clone() for m in launch.arguments.values() if m in memory and m not in launch.written
        }
        for m in self.read:
            memory[m].fill_(float("nan"))
        self.memory, self.waits = memory, 0
        execute(launch, launch.tiles[0], memory)
        assert self.waits > 0, f"{launch.name} never waits"

    def wait(self):
        if self.waits == 0:
            assert all(bool(buffer.isnan().all()) for buffer in self.written), "written before"
            for m, values in self.read.items():
                self.memory[m].copy_(values)
        self.waits += 1


def run_waiting(launches, x, image, monkeypatch):
    waiting = Waiting(monkeypatch)
    memory = {image: (x if image.strides else x.permute(0, 2, 3, 1)).contiguous().reshape(-1)}
    for launch in launches:
        memory |= {m: torch.full((m.elements,), float("nan"), dtype=m.dtype) for m in launch.written}
        waiting.run(launch, memory)
    y = launches[-1].output
    return memory[y].view(y.images, y.height, y.width, y.channels).permute(0, 3, 1, 2)


SHAPES = [
    shapes.stem(16, 6, 5),
    shapes.ffn(24, 40, 4, 3),
    shapes.attention(16, 3, 4, stride=2, **HEADS),
    shapes.attention(16, 9, 9, heads=2, key_dim=16, value_dim=16),  # two passes over the keys
    shapes.conv_downsample(16, 24, 5, 4),
    shapes.attention_downsample(16, 24, 3, 4, heads=2, key_dim=16, value_dim=32),
    shapes.head(24, 10, 2, 2),
]


def check(shape, monkeypatch):
    g = seeded(5)
    block, x = shapes.random_block(shape, g), shapes.random_input(shape, g, 2)
    image = map_of(x, x.stride() if shape.kind == "stem" else None)
    y = run_waiting(pack(block, torch.float32, "cpu").plan(image, "ieee"), x, image, monkeypatch)
    expected = exact(block, x)
    assert_close(y.reshape(expected.shape), expected, BOUNDS[torch.float32], str(shape))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_launch_waits(shape, monkeypatch):
    check(shape, monkeypatch)


@pytest.mark.parametrize("shape", SHAPES[1:3], ids=str)
def test_every_launch_waits_for_large_batches(shape, many_pixels, monkeypatch):  # noqa: F811
    check(shape, monkeypatch)


def test_a_feature_waits(monkeypatch):
    x = torch.randn(2, 24, 3, 4, generator=seeded(6))
    scale, shift = (torch.randn(24, generator=seeded(seed)) for seed in (7, 8))
    image = map_of(x)
    launches = Feature(blocks.Feature(0, scale, shift), "cpu").plan(image, "ieee")
    y = run_waiting(launches, x, image, monkeypatch)
    assert torch.equal(y, x * scale[:, None, None] + shift[:, None, None])


def test_only_gpus_that_can_overlap():
    assert [overlaps(capability) for capability in (80, 89, 90, 120)] == [False, False, True, True]
    launch = pack(shapes.random_block(shapes.head(24, 10, 2, 2), seeded(0)), torch.float16, "cpu").plan(
        map_of(torch.zeros(1, 24, 2, 2, dtype=torch.float16)), "ieee"
    )[0]
    one = tile(4, 2, BP=16, BC=32)
    assert launch.settings(one, True)[1] == {"num_warps": 4, "num_stages": 2, "launch_pdl": True}
    assert launch.settings(one, False)[1] == {"num_warps": 4, "num_stages": 2}
    assert launch.settings(one, True)[0]["OVERLAP"] is True
