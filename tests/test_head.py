"""The head: mean over the map, linear layer."""

import pytest
import torch
from checks import ISAS, as_network, check_block, check_layouts, check_not_finite, exact, run_engine, seeded

from effv2_kernels import blocks, cpu, shapes

FAMILY = shapes.family_shapes("head")


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", FAMILY)
def test_every_shape_of_the_family(name, isa):
    check_block(FAMILY[name], isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("classes", [1, 2, 7, 8, 10, 37, 100, 1001])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (5, 1), (6, 7), (12, 12)])
def test_map_sizes_and_classes(height, width, classes, isa):
    check_block(shapes.head(24, classes, height, width), isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("channels", [8, 16, 40, 72, 136, 448])
def test_widths(channels, isa):
    check_block(shapes.head(channels, 10, 3, 4), isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("batch", [1, 2, 3, 17])
def test_batches(batch, isa):
    check_block(shapes.head(32, 11, 7, 7), isa, batch=batch)


@pytest.mark.parametrize("isa", ISAS)
def test_strided_inputs(isa):
    check_layouts(shapes.head(16, 9, 6, 5), isa)


@pytest.mark.parametrize("isa", ISAS)
def test_nan_and_infinity(isa):
    check_not_finite(shapes.head(24, 10, 7, 7), isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (4, 4), (8, 2)])
def test_exact_on_integers(height, width, isa):
    """The mean over a power of two of small integers is exact, and so are the sums behind it."""
    g = seeded(height)
    block = blocks.Head(
        blocks.Layer(
            weight=torch.randint(-3, 4, (37, 104), generator=g).float(),
            bias=torch.randint(-9, 10, (37,), generator=g).float(),
        )
    )
    x = torch.randint(-5, 6, (3, 104, height, width), generator=g).float()
    (y,) = run_engine(cpu.Engine(as_network(block), isa), x)
    assert torch.equal(y.double(), exact(block, x))
