"""The step to the last stage: attention from every second position beside a strided convolution."""

import pytest
import torch
from checks import (
    BLOCK_BOUND,
    ISAS,
    as_network,
    assert_close,
    block_case,
    check_block,
    check_layouts,
    check_not_finite,
    exact,
    rebuilt,
    run_engine,
    seeded,
)

from effv2_kernels import cpu, shapes
from effv2_kernels.errors import ResolutionError

FAMILY = shapes.family_shapes("attention_downsample")

MAPS = [(1, 1), (1, 2), (2, 1), (1, 17), (13, 1), (2, 2), (3, 5), (4, 4), (6, 9), (7, 7), (8, 8), (11, 5)]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", FAMILY)
def test_every_shape_of_the_family(name, isa):
    check_block(FAMILY[name], isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("height", "width"), MAPS)
def test_map_sizes(height, width, isa):
    check_block(shapes.attention_downsample(24, 40, height, width), isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("channels", "out"), [(8, 8), (16, 72), (40, 24), (56, 104), (104, 56)])
def test_widths(channels, out, isa):
    check_block(shapes.attention_downsample(channels, out, 5, 6), isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("batch", [1, 2, 3, 17])
def test_batches(batch, isa):
    check_block(shapes.attention_downsample(16, 24, 5, 4), isa, batch=batch)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("height", "width"), [(15, 17), (27, 24), (13, 83)])
def test_many_tokens(height, width, isa):
    check_block(shapes.attention_downsample(24, 40, height, width), isa)


def test_tokens_of_a_detector():
    """A 1333x800 image: 1,050 queries and 4,200 keys."""
    check_block(shapes.attention_downsample(96, 176, 50, 84), cpu.default_isa())


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("table", "height", "width"),
    [((7, 7), 7, 7), ((7, 7), 6, 9), ((4, 6), 9, 5), ((14, 14), 11, 21), ((3, 3), 1, 2)],
)
def test_resized_bias(table, height, width, isa):
    check_block(shapes.attention_downsample(24, 40, height, width, table=table), isa)


@pytest.mark.parametrize("isa", ISAS)
def test_strided_inputs(isa):
    check_layouts(shapes.attention_downsample(16, 24, 6, 5), isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("height", "width"), [(7, 7), (4, 9)])
def test_nan_and_infinity(height, width, isa):
    check_not_finite(shapes.attention_downsample(24, 40, height, width), isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("scale", [1e2, 1e4])
def test_large_biases_do_not_overflow(scale, isa):
    shape = shapes.attention_downsample(24, 40, 6, 7)
    block, x, _ = block_case(shape)
    block = rebuilt(block, bias=block.bias * scale)
    expected = exact(block, x)
    (y,) = run_engine(cpu.Engine(as_network(block), isa), x)
    # A logit of size L is rounded by L * 2^-24, and its probability moves by that share.
    logits = float(block.bias.abs().max())
    assert_close(y, expected, BLOCK_BOUND + 2 * logits * 2.0**-24, f"{shape} on {isa}, bias * {scale}")


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("height", "width"), [(4, 4), (5, 7), (14, 14)])
def test_convolutions_are_exact_on_integers(height, width, isa):
    """With values of zero GELU sees the local bias alone, 64, and gives it back: the rest is integers."""
    shape = shapes.attention_downsample(24, 40, height, width)
    g = seeded(4)

    def integers(t):
        return torch.randint(-3, 4, t.shape, generator=g).float()

    block = shapes.random_block(shape, g)
    keys = block.heads * block.key_dim
    block.kv.weight[keys:], block.kv.bias[keys:] = 0, 0
    block = rebuilt(
        block,
        local_bias=torch.full_like(block.local.bias, 64.0),
        # packed times 16 / 5 or 1 / 10: see csrc/cpu/tiles/gelu.h
        proj_weight=5 * integers(block.proj.weight),
        proj_bias=integers(block.proj.bias),
        conv_weight=integers(block.conv.weight),
        conv_bias=integers(block.conv.bias),
    )
    x = integers(torch.empty(2, 24, height, width))
    (y,) = run_engine(cpu.Engine(as_network(block), isa), x)
    assert torch.equal(y.double(), exact(block, x))


@pytest.mark.parametrize("isa", ISAS)
def test_bias_of_another_map_is_refused(isa):
    block, _, _ = block_case(shapes.attention_downsample(16, 24, 7, 7))
    with pytest.raises(ResolutionError, match=r"7-7 rows by 7-7 columns, but this one is 9x7"):
        cpu.Engine(as_network(block), isa).run(torch.zeros(1, 16, 9, 7))
