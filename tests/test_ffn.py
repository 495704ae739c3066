"""The FFN block: 1x1, GELU, depthwise 3x3, GELU, 1x1, residual."""

import pytest
import torch
from checks import (
    BLOCK_BOUND,
    ISAS,
    as_network,
    assert_close,
    check_block,
    check_layouts,
    check_not_finite,
    exact,
    rebuilt,
    run_engine,
    seeded,
)

from effv2_kernels import blocks, cpu, shapes

FAMILY = {
    **shapes.family_shapes("ffn"),
    **shapes.family_shapes("ffn", family="mobilenet_v2"),
}

# Heights and widths around the sizes of tiles and vectors, single rows, columns and pixels.
MAPS = [(1, 1), (1, 2), (2, 1), (1, 31), (29, 1), (2, 2), (3, 5), (5, 8), (7, 7), (9, 13), (17, 3), (6, 33)]

# (channels, hidden): any multiple of 8, and ratios that leave hidden sizes of any kind (40 * 3.3 = 132).
WIDTHS = [(8, 8), (8, 29), (16, 48), (24, 79), (40, 132), (56, 184), (72, 216), (104, 343), (200, 660)]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", FAMILY)
def test_every_shape_of_the_family(name, isa):
    check_block(FAMILY[name], isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("height", "width"), MAPS)
def test_map_sizes(height, width, isa):
    check_block(shapes.ffn(24, 72, height, width), isa)
    check_block(shapes.ffn(48, 160, height, width), isa, batch=2)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("channels", "hidden"), WIDTHS)
def test_widths_and_ratios(channels, hidden, isa):
    check_block(shapes.ffn(channels, hidden, 5, 9), isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("batch", [1, 2, 3, 17])
def test_batches(batch, isa):
    check_block(shapes.ffn(32, 96, 7, 6), isa, batch=batch)


@pytest.mark.parametrize("isa", ISAS)
def test_strided_inputs(isa):
    check_layouts(shapes.ffn(16, 40, 6, 5), isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("height", "width"), [(7, 7), (2, 9), (5, 20)])
def test_nan_and_infinity(height, width, isa):
    check_not_finite(shapes.ffn(24, 72, height, width), isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("scale", [1e-2, 10.0, 1e3])
def test_the_whole_range_of_gelu(scale, isa):
    """Activations far below and far above 1; without biases, so that all of them have that size."""
    shape = shapes.ffn(32, 128, 7, 7)
    g = seeded(3)
    block = shapes.random_block(shape, g)
    block = rebuilt(block, **{k: torch.zeros_like(t) for k, t in block.tensors().items() if t.ndim == 1})
    x = shapes.random_input(shape, g) * scale
    (y,) = run_engine(cpu.Engine(as_network(block), isa), x)
    assert_close(y, exact(block, x), BLOCK_BOUND, f"inputs of {scale}")


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("channels", "hidden", "height", "width"), [(16, 24, 5, 7), (40, 132, 9, 4), (96, 288, 14, 14)]
)
def test_exact_on_integers(channels, hidden, height, width, isa):
    """GELU(x) is x for x > 14, so with large biases all is integer arithmetic: the expected error is zero."""
    g = seeded(1)

    def integers(*size, below=2):
        return torch.randint(-below, below + 1, size, generator=g).float()

    block = blocks.FFN(
        fc1=blocks.Layer(integers(hidden, channels), integers(hidden) + 8.0 * channels + 32),
        # not negative, and the bias keeps borders large as well
        dw=blocks.Layer(integers(hidden, 3, 3).abs(), integers(hidden) + 64),
        # packed times 16 / 5 or 1 / 10: see csrc/cpu/tiles/gelu.h
        fc2=blocks.Layer(5 * integers(channels, hidden, below=1), integers(channels, below=9)),
    )
    x = integers(2, channels, height, width, below=4)
    expected = exact(block, x)
    assert float(expected.abs().max()) < 2**24
    (y,) = run_engine(cpu.Engine(as_network(block), isa), x)
    assert torch.equal(y.double(), expected)
