"""Talking-head attention, plain and strided."""

import subprocess
import sys

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
)

from effv2_kernels import cpu, shapes
from effv2_kernels.errors import ResolutionError

FAMILY = shapes.family_shapes("attention")

MAPS = [(1, 1), (1, 2), (2, 1), (1, 17), (13, 1), (2, 2), (3, 5), (4, 4), (6, 9), (7, 7), (8, 8), (11, 5)]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", FAMILY)
def test_every_shape_of_the_family(name, isa):
    check_block(FAMILY[name], isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("height", "width"), MAPS)
def test_map_sizes(height, width, stride, isa):
    check_block(shapes.attention(24, height, width, stride=stride), isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels", [8, 16, 40, 56, 72, 104, 136])
def test_widths(channels, stride, isa):
    check_block(shapes.attention(channels, 5, 6, stride=stride), isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("batch", [1, 2, 3, 17])
def test_batches(batch, stride, isa):
    check_block(shapes.attention(16, 5, 4, stride=stride), isa, batch=batch)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("height", "width", "stride"), [(15, 17, 1), (16, 23, 1), (27, 33, 2), (25, 84, 2)])
def test_many_tokens(height, width, stride, isa):
    """More tokens than one tile of queries and keys holds, and numbers of them that no tile divides."""
    check_block(shapes.attention(24, height, width, stride=stride), isa)


def test_tokens_of_a_detector():
    """The third stage of a 1333x800 image: 50x84 positions, 1,050 tokens."""
    check_block(shapes.attention(96, 50, 84, stride=2), cpu.default_isa())


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("table", "height", "width", "stride"),
    [((7, 7), 7, 7, 1), ((7, 7), 6, 9, 1), ((4, 6), 9, 5, 1), ((7, 7), 19, 12, 2), ((3, 3), 1, 2, 2)],
)
def test_resized_bias(table, height, width, stride, isa):
    check_block(shapes.attention(24, height, width, stride=stride, table=table), isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("stride", [1, 2])
def test_strided_inputs(stride, isa):
    check_layouts(shapes.attention(16, 6, 5, stride=stride), isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("height", "width", "stride"), [(7, 7, 1), (9, 6, 2)])
def test_nan_and_infinity(height, width, stride, isa):
    check_not_finite(shapes.attention(24, height, width, stride=stride), isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("scale", [1e2, 1e4])
def test_large_biases_do_not_overflow(scale, stride, isa):
    """A softmax that forgets to subtract the maximum overflows from a logit of 89 on."""
    shape = shapes.attention(24, 6, 7, stride=stride)
    block, x, _ = block_case(shape)
    block = rebuilt(block, bias=block.bias * scale)
    expected = exact(block, x)
    (y,) = run_engine(cpu.Engine(as_network(block), isa), x)
    # A logit of size L is rounded by L * 2^-24, and its probability moves by that share.
    logits = float(block.bias.abs().max())
    assert_close(y, expected, BLOCK_BOUND + 2 * logits * 2.0**-24, f"{shape} on {isa}, bias * {scale}")


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("stride", [1, 2])
def test_channels_of_very_different_scale(stride, isa):
    """As BatchNorm and layer scales leave them: output scales spread over e^-3 to e^3."""
    shape = shapes.attention(40, 7, 6, stride=stride)
    block, x, expected = block_case(shape, 1, 3, 1.0)
    (y,) = run_engine(cpu.Engine(as_network(block), isa), x)
    assert_close(y, expected, BLOCK_BOUND + rounding_of_logits(block, x), f"{shape} on {isa}")


def rounding_of_logits(block, x):
    """How far probabilities move when each logit is rounded as a sum of key_dim products of fp32 numbers.

    The unit roundoff times the root mean square, over the logits, of the absolute terms they add up.
    """
    from effv2_kernels.reference.attention_bias import gather

    x = x.double()
    if block.stride == 2:
        dw = block.dw.weight.double()[:, None]
        x = torch.nn.functional.conv2d(x, dw, block.dw.bias.double(), 2, 1, groups=dw.shape[0])
    keys = block.heads * block.key_dim
    qk = torch.einsum("oc,nchw->nohw", block.qkv.weight.double()[: 2 * keys], x)
    qk = (qk + block.qkv.bias.double()[: 2 * keys, None, None]).flatten(2)
    q, k = qk.abs().unflatten(1, (2, block.heads, block.key_dim)).unbind(1)
    terms = torch.einsum("hg,ngdi,ngdj->nhij", block.mix1_weight.double().abs(), q, k)
    return float((terms + gather(block.bias.double()).abs()).square().mean().sqrt()) * 2.0**-24


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("stride", [1, 2])
def test_bias_of_another_map_is_refused(stride, isa):
    block, _, _ = block_case(shapes.attention(16, 7, 7, stride=stride))
    with pytest.raises(ResolutionError, match=r"7-[78] rows by 7-[78] columns, but this one is 9x7"):
        cpu.Engine(as_network(block), isa).run(torch.zeros(1, 16, 9, 7))


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory that Linux keeps")
def test_memory_stays_bounded_with_many_tokens():
    """8 heads of 2,100 x 2,100 logits are 141 MB; tiles need far less than a tenth of that."""
    program = """
import resource, torch
from effv2_kernels import blocks, cpu, shapes
torch.set_num_threads(1)
shape = shapes.attention(16, 50, 42)
block = shapes.random_block(shape, torch.Generator().manual_seed(0))
x = torch.randn(1, 16, 50, 42)
engine = cpu.Engine(blocks.Network((block,), ("",)))
small = shapes.attention(16, 2, 2)
other = cpu.Engine(blocks.Network((shapes.random_block(small, torch.Generator()),), ("",)))
other.run(torch.randn(1, 16, 2, 2), 1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
engine.run(x, 1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=300
    )
    # q, k, v and u of 2,100 tokens are 21 MB; the logits would be 141 MB more.
    assert int(done.stdout) < 50_000, f"{int(done.stdout)} KiB"
