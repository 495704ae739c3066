"""The stem: two 3x3 convolutions with stride 2, each behind a GELU."""

import pytest
import torch
from checks import ISAS, as_network, check_block, check_layouts, check_not_finite, exact, run_engine, seeded

from effv2_kernels import blocks, cpu, shapes

FAMILY = shapes.family_shapes("stem")

IMAGES = [
    (1, 1),
    (1, 2),
    (2, 1),
    (1, 40),
    (37, 1),
    (2, 2),
    (3, 3),
    (4, 5),
    (7, 6),
    (9, 33),
    (31, 18),
    (66, 67),
]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", FAMILY)
def test_every_shape_of_the_family(name, isa):
    check_block(FAMILY[name], isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("height", "width"), IMAGES)
def test_image_sizes(height, width, isa):
    check_block(shapes.stem(24, height, width), isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("in_channels", [1, 2, 3, 4, 5, 13])
@pytest.mark.parametrize("width", [8, 16, 40, 56, 96])
def test_widths_and_input_channels(width, in_channels, isa):
    check_block(shapes.stem(width, 13, 18, in_channels=in_channels), isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("batch", [1, 2, 3, 17])
def test_batches(batch, isa):
    check_block(shapes.stem(32, 21, 20), isa, batch=batch)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("height", "width"), [(20, 19), (3, 5)])
def test_strided_inputs(height, width, isa):
    check_layouts(shapes.stem(16, height, width), isa)


@pytest.mark.parametrize("isa", ISAS)
def test_nan_and_infinity(isa):
    check_not_finite(shapes.stem(24, 14, 11), isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("height", "width", "in_channels"), [(15, 22, 3), (32, 32, 3), (9, 8, 1)])
def test_exact_on_integers(height, width, in_channels, isa):
    """GELU(x) is x for x > 14: with large biases and no negative second weight all is integer arithmetic."""
    g = seeded(2)
    conv1 = torch.randint(-2, 3, (12, in_channels, 3, 3), generator=g).float()
    block = blocks.Stem(
        blocks.Layer(conv1, torch.full((12,), 9.0 * in_channels * 2 * 4 + 32)),
        blocks.Layer(torch.randint(0, 3, (24, 12, 3, 3), generator=g).float(), torch.arange(24.0) + 32),
    )
    x = torch.randint(-4, 5, (2, in_channels, height, width), generator=g).float()
    expected = exact(block, x)
    assert float(expected.min()) > 32
    assert float(expected.max()) < 2**24
    (y,) = run_engine(cpu.Engine(as_network(block), isa), x)
    assert torch.equal(y.double(), expected)
