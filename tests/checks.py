"""How tests run a block or network and compare it: NaN-poisoned memory, guards, float64, derived bounds."""

from contextlib import contextmanager
from functools import lru_cache

import torch
from conftest import SEED

from effv2_kernels import blocks, cpu, declaration, shapes
from effv2_kernels.reference import run, run_block

# Relative L2 over the output, fp32 against the float64 reference.
BLOCK_BOUND = 5e-7
NETWORK_BOUND = 1e-6

ISAS = cpu.native().available_isas()

_GUARD = 96  # floats before and after every buffer, more than two of the widest vectors
_GUARD_BITS = 0x7FC0BEEF  # a NaN that arithmetic does not make


def seeded(number):
    """Random numbers that are fresh in every session; see conftest."""
    return torch.Generator().manual_seed(SEED ^ number)


@contextmanager
def one_torch_thread():
    """At the sizes of tests, and on a busy machine, PyTorch's threads mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def plain_pytorch():
    """No gradients, and one thread."""
    with one_torch_thread(), torch.no_grad():
        yield


def exact(block, x):
    """The output of one block in float64."""
    with plain_pytorch():
        return run_block(block, x.double())


def exact_network(network, x):
    """The outputs of a whole network in float64, as a list."""
    with plain_pytorch():
        y = run(network, x.double())
    return y if isinstance(y, list) else [y]


def eager(block, x):
    """The output of one block in PyTorch's own float32."""
    with plain_pytorch():
        return run_block(block, x)


def rebuilt(block, **changes):
    """The block with other tensors or options, by name."""
    return declaration.assemble(type(block), {**block.values(), **changes})


def as_network(block):
    """A network of this block alone, which returns its output."""
    return blocks.Network((block,), ("",))


def _guarded(count):
    """A buffer of NaN with guards on both sides."""
    buffer = torch.full((count + 2 * _GUARD,), _GUARD_BITS, dtype=torch.int32).view(torch.float32)
    return buffer


def in_poisoned_memory(x):
    """x with the same strides, in memory that is NaN wherever x is not."""
    extent = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    buffer = _guarded(extent)
    once = x  # every element of an expanded dimension is the same memory: write it once
    for dim, stride in enumerate(x.stride()):
        if stride == 0:
            once = once.narrow(dim, 0, 1)
    buffer.as_strided(once.shape, once.stride(), _GUARD).copy_(once)
    return buffer.as_strided(x.shape, x.stride(), _GUARD)


def run_engine(engine, x, threads=2):
    """The outputs for x, from poisoned input memory into poisoned outputs whose guards must survive."""
    planned = engine.run(x, threads)  # also what users call: its outputs must be the same bits
    x = in_poisoned_memory(x)
    buffers = [_guarded(y.numel()) for y in planned]
    addresses = [buffer[_GUARD:].data_ptr() for buffer in buffers]
    engine._network.run(x.data_ptr(), x.shape, x.stride(), addresses, threads)
    outputs = []
    for y, buffer in zip(planned, buffers, strict=True):
        bits = buffer.view(torch.int32)
        for guard in (bits[:_GUARD], bits[-_GUARD:]):
            assert bool((guard == _GUARD_BITS).all()), "the engine wrote outside of an output"
        assert not bool((bits[_GUARD:-_GUARD] == _GUARD_BITS).any()), "the engine left outputs unwritten"
        output = buffer[_GUARD:-_GUARD].as_strided(y.shape, y.stride())
        assert same_bits(output, y), "two runs on the same input differ"
        outputs.append(output)
    return outputs


def same_bits(a, b):
    """Whether two float32 tensors hold the same numbers, with NaN equal to NaN."""
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


def relative_l2(actual, expected):
    return float((actual.double() - expected).norm() / expected.norm())


def assert_close(actual, expected, bound, what=""):
    """Relative L2 within ``bound``; the worst element is printed otherwise."""
    assert actual.shape == expected.shape, f"{what}: {tuple(actual.shape)} != {tuple(expected.shape)}"
    assert actual.dtype == torch.float32
    assert bool(actual.isfinite().all()), f"{what}: {int((~actual.isfinite()).sum())} values are not finite"
    found = relative_l2(actual, expected)
    if not found <= bound:
        difference = (actual.double() - expected).abs()
        worst = tuple(int(i) for i in torch.unravel_index(difference.argmax(), expected.shape))
        raise AssertionError(
            f"{what}: relative L2 {found:.3e} > {bound:.3e}; worst at {worst}: "
            f"{float(actual[worst]):.9g} where the reference has {float(expected[worst]):.9g}"
        )


@lru_cache(maxsize=512)
def block_case(shape, batch=1, seed=0, spread=0.5):
    """(block, x, float64 reference output); one result for all ISAs that ask for it."""
    g = seeded(seed + 7919 * (shape.height * 1009 + shape.width) + batch)
    block = shapes.random_block(shape, g, spread=spread)
    x = shapes.random_input(shape, g, batch)
    return block, x, exact(block, x)


def check_block(shape, isa, *, batch=1, bound=BLOCK_BOUND):
    """One random block at this shape against the float64 reference.

    The relative L2 of a handful of values is large whenever they happen to cancel: maps of few values are
    run with more images, and the first of these alone as well, which must give the same bits.
    """
    values = (1 if shape.kind == "head" else shape.height * shape.width) * shape.sizes.get(
        "out", shape.sizes["in"]
    )
    images = max(batch, min(24, 2000 // values))
    block, x, expected = block_case(shape, images)
    engine = cpu.Engine(as_network(block), isa)
    (y,) = run_engine(engine, x)
    assert_close(y, expected, bound, f"{shape} on {isa}, batch {images}")
    if images > batch:
        (alone,) = run_engine(engine, x[:batch])
        assert torch.equal(alone, y[:batch]), f"{shape} on {isa}: batch {batch} differs from batch {images}"


def layouts(x):
    """The same values in other strides, by name."""
    n, c, h, w = x.shape
    yield "channels_last", x.contiguous(memory_format=torch.channels_last)
    yield "transposed", x.transpose(2, 3).contiguous().transpose(2, 3)
    yield "batch innermost", x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)
    wide = torch.full((n, c, h + 3, w + 5), torch.nan)
    wide[:, :, 1 : h + 1, 2 : w + 2] = x
    yield "a window", wide[:, :, 1 : h + 1, 2 : w + 2]
    sparse = torch.full((2 * n, 2 * c, 2 * h, 3 * w), torch.nan)
    sparse[1::2, ::2, 1::2, ::3] = x
    yield "every second", sparse[1::2, ::2, 1::2, ::3]


def check_layouts(shape, isa):
    """Inputs of any strides give the bits that a contiguous one gives; expanded inputs as well."""
    block, x, expected = block_case(shape, 3)
    engine = cpu.Engine(as_network(block), isa)
    (contiguous,) = run_engine(engine, x)
    assert_close(contiguous, expected, BLOCK_BOUND, f"{shape} on {isa}")
    for name, view in layouts(x):
        assert name == "channels_last" or not view.is_contiguous()
        (y,) = run_engine(engine, view)
        assert torch.equal(y, contiguous), f"{shape} on {isa}, {name}"
    for name, view in (
        ("batch expanded", x[:1].expand(4, -1, -1, -1)),
        ("channels expanded", x[:, :1].expand(-1, x.shape[1], -1, -1)),
        ("rows expanded", x[:, :, :1].expand(-1, -1, x.shape[2], -1)),
        ("one value", x[:1, :1, :1, :1].expand(2, *x.shape[1:])),
    ):
        (y,) = run_engine(engine, view)
        (contiguous,) = run_engine(engine, view.contiguous())
        assert torch.equal(y, contiguous), f"{shape} on {isa}, {name}"


def check_not_finite(shape, isa, positions=((0, 0), (-1, -1), (1, 0))):
    """NaN and infinities come out where PyTorch has them, and never in other images of the batch."""
    block, clean, _ = block_case(shape, 3, seed=5)
    engine = cpu.Engine(as_network(block), isa)
    (others,) = engine.run(clean, 2)
    clips = getattr(block, "activation", "") == "relu6"  # an infinity may then be an ordinary number
    for value in (torch.nan, torch.inf, -torch.inf):
        for row, column in positions:
            x = clean.clone()
            x[1, x.shape[1] // 2, min(row, shape.height - 1), min(column, shape.width - 1)] = value
            (y,) = run_engine(engine, x)
            expected = eager(block, x)
            what = f"{shape} on {isa}, {value} at {(row, column)}"
            if not (clips and x[1].isinf().any()):
                assert not bool(expected[1].isfinite().all()), f"{what}: the test shows nothing"
            for other in (0, 2):
                assert torch.equal(y[other], others[other]), f"{what}: spread to image {other}"
            check_same_kind(y[1], expected[1], what)


def check_same_kind(actual, expected, what):
    """Where PyTorch gives NaN, +inf or -inf, so does ``actual``; elsewhere the numbers agree."""
    for kind in (torch.isnan, torch.isposinf, torch.isneginf):
        wrong = kind(actual) != kind(expected)
        assert not bool(wrong.any()), (
            f"{what}: {int(wrong.sum())} of {wrong.numel()} differ in {kind.__name__}; the first: "
            f"{float(actual[wrong][0])} where PyTorch has {float(expected[wrong][0])}"
        )
    finite = expected.isfinite()
    if bool(finite.any()):
        # both are fp32: each is within the bound of the exact value
        assert relative_l2(actual[finite], expected[finite].double()) <= 4 * BLOCK_BOUND, what


def propagated_bound(network, x, number=0):
    """What the bound of one block becomes at the output of a whole network.

    In float64, each block's output gets a random error of relative L2 BLOCK_BOUND; the errors of the
    network's outputs are returned. Networks with weights of any size need it: where activations grow and
    cancel, the rounding errors of any fp32 implementation grow with them.
    """
    g = seeded(977 + number)
    clean = exact_network(network, x)
    outputs = []
    y = x.double()
    for block in network.blocks:
        y = exact(block, y)
        noise = torch.randn(y.shape, generator=g, dtype=torch.float64)
        y = y + noise * (BLOCK_BOUND * y.norm() / noise.norm())
        outputs.append(y)
    wanted = [outputs[f.block] for f in network.features] or [outputs[-1]]
    for i, f in enumerate(network.features):
        if f.scale is not None:
            wanted[i] = wanted[i] * f.scale[:, None, None].double() + f.shift[:, None, None].double()
    return [relative_l2(noisy, c) for noisy, c in zip(wanted, clean, strict=True)]


class PackingCounter:
    """Counts the engines that are packed."""

    def __init__(self, monkeypatch):
        self.count = 0
        original = cpu.Engine.__init__

        def counting(engine, *args, **kwargs):
            self.count += 1
            original(engine, *args, **kwargs)

        monkeypatch.setattr(cpu.Engine, "__init__", counting)
