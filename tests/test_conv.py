"""The step between early stages: a 3x3 convolution with stride 2."""

import pytest
import torch
from checks import (
    ISAS,
    as_network,
    check_block,
    check_layouts,
    check_not_finite,
    exact,
    run_engine,
    seeded,
)

from effv2_kernels import blocks, cpu, shapes

FAMILY = {
    **shapes.family_shapes("conv"),
    **shapes.family_shapes("conv", family="mobilenet_v2"),
}

MAPS = [(1, 1), (1, 2), (2, 1), (1, 31), (29, 1), (2, 2), (3, 5), (4, 8), (7, 7), (9, 13), (17, 3), (6, 33)]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", FAMILY)
def test_every_shape_of_the_family(name, isa):
    check_block(FAMILY[name], isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("height", "width"), MAPS)
def test_map_sizes(height, width, isa):
    check_block(shapes.conv(24, 40, height, width, stride=2), isa)
    check_block(shapes.conv(8, 16, height, width, stride=2), isa, batch=2)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("channels", "out"), [(8, 8), (8, 72), (16, 24), (40, 56), (56, 40), (72, 104), (136, 8)]
)
def test_widths(channels, out, isa):
    check_block(shapes.conv(channels, out, 7, 10, stride=2), isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("batch", [1, 2, 3, 17])
def test_batches(batch, isa):
    check_block(shapes.conv(16, 24, 7, 6, stride=2), isa, batch=batch)


@pytest.mark.parametrize("isa", ISAS)
def test_strided_inputs(isa):
    check_layouts(shapes.conv(16, 24, 6, 5, stride=2), isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("height", "width"), [(7, 7), (2, 9)])
def test_nan_and_infinity(height, width, isa):
    check_not_finite(shapes.conv(24, 40, height, width, stride=2), isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("channels", "out", "height", "width"),
    [(8, 16, 1, 1), (16, 24, 5, 7), (32, 48, 56, 56), (40, 80, 9, 31), (104, 56, 4, 6), (192, 384, 14, 14)],
)
def test_exact_on_integers(channels, out, height, width, isa):
    """Sums of small integers are exact in fp32, in any order: the expected error is zero."""
    g = seeded(channels)
    block = blocks.Conv(
        blocks.Layer(
            weight=torch.randint(-3, 4, (out, channels, 3, 3), generator=g).float(),
            bias=torch.randint(-9, 10, (out,), generator=g).float(),
        ),
        stride=2,
    )
    x = torch.randint(-5, 6, (2, channels, height, width), generator=g).float()
    (y,) = run_engine(cpu.Engine(as_network(block), isa), x)
    assert torch.equal(y.double(), exact(block, x))
