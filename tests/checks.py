"""How tests run a block or network and compare it: NaN-poisoned memory, guards, float64, derived bounds."""

from contextlib import contextmanager
from functools import lru_cache
from typing import NamedTuple

import torch
from conftest import SEED

from effv2_kernels import blocks, cpu, declaration, shapes
from effv2_kernels.backends import TORCH_DTYPES
from effv2_kernels.bounds import BLOCK as BLOCK_BOUND
from effv2_kernels.bounds import HALF_BLOCK as HALF_BLOCK_BOUND
from effv2_kernels.bounds import HALF_NETWORK as HALF_NETWORK_BOUND
from effv2_kernels.bounds import NETWORK as NETWORK_BOUND
from effv2_kernels.reference import run, run_block

ISAS = cpu.native().available_isas()


class Target(NamedTuple):
    """What a processor runs: an instruction set, and what weights and maps are kept in."""

    isa: str
    dtype: str = "fp32"

    def __str__(self):
        return self.isa if self.dtype == "fp32" else f"{self.isa}-{self.dtype}"

    @classmethod
    def of(cls, target):
        """Of a target, or of an ISA alone."""
        return cls(target) if isinstance(target, str) else target

    @property
    def torch_dtype(self):
        return TORCH_DTYPES[self.dtype]

    @property
    def block_bound(self):
        return BLOCK_BOUND if self.dtype == "fp32" else HALF_BLOCK_BOUND

    @property
    def network_bound(self):
        return NETWORK_BOUND if self.dtype == "fp32" else HALF_NETWORK_BOUND

    def engine(self, network):
        return cpu.Engine(network, self.isa, self.dtype)

    def kept(self, x):
        """Images as this target takes them."""
        return x.to(self.torch_dtype)


TARGETS = [Target(isa, dtype) for isa in ISAS for dtype in cpu.native().formats(isa)]

_GUARD = 96  # values before and after every buffer, more than two of the widest vectors
# The integers that have the size of a number, and a NaN that arithmetic does not make.
_GUARD_BITS = {
    torch.float32: (torch.int32, 0x7FC0BEEF),
    torch.bfloat16: (torch.int16, 0x7FDB),
    torch.float16: (torch.int16, 0x7EDB),
}


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


def _guarded(count, dtype):
    """A buffer of NaN with guards on both sides."""
    integers, bits = _GUARD_BITS[dtype]
    return torch.full((count + 2 * _GUARD,), bits, dtype=integers).view(dtype)


def in_poisoned_memory(x):
    """x with the same strides, in memory that is NaN wherever x is not."""
    extent = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    buffer = _guarded(extent, x.dtype)
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
    buffers = [_guarded(y.numel(), y.dtype) for y in planned]
    addresses = [buffer[_GUARD:].data_ptr() for buffer in buffers]
    engine._network.run(x.data_ptr(), x.shape, x.stride(), addresses, threads)
    outputs = []
    for y, buffer in zip(planned, buffers, strict=True):
        integers, nan = _GUARD_BITS[y.dtype]
        bits = buffer.view(integers)
        for guard in (bits[:_GUARD], bits[-_GUARD:]):
            assert bool((guard == nan).all()), "the engine wrote outside of an output"
        assert not bool((bits[_GUARD:-_GUARD] == nan).any()), "the engine left outputs unwritten"
        output = buffer[_GUARD:-_GUARD].as_strided(y.shape, y.stride())
        assert same_bits(output, y), "two runs on the same input differ"
        outputs.append(output)
    return outputs


def same_bits(a, b):
    """Whether two tensors hold the same numbers, with NaN equal to NaN."""
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


def relative_l2(actual, expected):
    """Of equal tensors it is 0, of zeros as well."""
    off = (actual.double() - expected).norm()
    return float(off / expected.norm()) if off else 0.0


def assert_close(actual, expected, bound, what="", dtype=torch.float32):
    """Relative L2 within ``bound``; of few values 1 + 3 / sqrt(n) of it. Prints the worst element otherwise.

    Roundings average out over many values; where there are few, one sum that all but cancels is much of the
    norm, and some seed finds it.
    """
    bound *= 1 + 3 / max(expected.numel(), 1) ** 0.5
    assert actual.shape == expected.shape, f"{what}: {tuple(actual.shape)} != {tuple(expected.shape)}"
    assert actual.dtype == dtype
    assert bool(actual.isfinite().all()), f"{what}: {int((~actual.isfinite()).sum())} values are not finite"
    found = relative_l2(actual, expected)
    if not found <= bound:
        difference = (actual.double() - expected).abs()
        worst = tuple(int(i) for i in torch.unravel_index(difference.argmax(), expected.shape))
        raise AssertionError(
            f"{what}: relative L2 {found:.3e} > {bound:.3e}; worst at {worst}: "
            f"{float(actual[worst]):.9g} where the reference has {float(expected[worst]):.9g}"
        )


def assert_block(y, block, x, expected, target, what):
    """A block's output within the target's bound, which random weights may put out of anybody's reach.

    Large logits of an attention magnify its own rounding errors; PyTorch's float32 tells by how much.
    """
    bound = target.block_bound
    if target.dtype == "fp32" and relative_l2(y, expected) > bound:
        bound = max(bound, 3 * relative_l2(eager(block, x), expected))
    assert_close(y, expected, bound, what, target.torch_dtype)


@lru_cache(maxsize=512)
def block_case(shape, batch=1, seed=0, spread=0.5, dtype=torch.float32):
    """(block, x in dtype, float64 reference output); one result for all ISAs that ask for it."""
    g = seeded(seed + 7919 * (shape.height * 1009 + shape.width) + batch)
    block = shapes.random_block(shape, g, spread=spread)
    x = shapes.random_input(shape, g, batch).to(dtype)
    return block, x, exact(block, x)


def check_block(shape, target, *, batch=1):
    """One random block at this shape against the float64 reference. target: one, or an ISA in fp32.

    The relative L2 of a handful of values is large whenever they happen to cancel: maps of few values are
    run with more images, and the first of these alone as well, which must give the same bits.
    """
    target = Target.of(target)
    block, x, expected = block_case(shape, batch, dtype=target.torch_dtype)
    images = max(batch, min(24, 2000 // expected[0].numel()))
    if images > batch:
        block, x, expected = block_case(shape, images, dtype=target.torch_dtype)
    engine = target.engine(as_network(block))
    (y,) = run_engine(engine, x)
    what = f"{shape} on {target}"
    assert_block(y, block, x, expected, target, f"{what}, batch {images}")
    if images > batch:
        (alone,) = run_engine(engine, x[:batch])
        assert torch.equal(alone, y[:batch]), f"{what}: batch {batch} differs from batch {images}"


def layouts(x):
    """The same values in other strides, by name."""
    n, c, h, w = x.shape
    yield "channels_last", x.contiguous(memory_format=torch.channels_last)
    yield "transposed", x.transpose(2, 3).contiguous().transpose(2, 3)
    yield "batch innermost", x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)
    wide = torch.full((n, c, h + 3, w + 5), torch.nan, dtype=x.dtype)
    wide[:, :, 1 : h + 1, 2 : w + 2] = x
    yield "a window", wide[:, :, 1 : h + 1, 2 : w + 2]
    sparse = torch.full((2 * n, 2 * c, 2 * h, 3 * w), torch.nan, dtype=x.dtype)
    sparse[1::2, ::2, 1::2, ::3] = x
    yield "every second", sparse[1::2, ::2, 1::2, ::3]


def check_layouts(shape, target):
    """Inputs of any strides give the bits that a contiguous one gives; expanded inputs as well."""
    target = Target.of(target)
    block, x, expected = block_case(shape, 3, dtype=target.torch_dtype)
    engine = target.engine(as_network(block))
    (contiguous,) = run_engine(engine, x)
    assert_block(contiguous, block, x, expected, target, f"{shape} on {target}")
    for name, view in layouts(x):
        assert name == "channels_last" or not view.is_contiguous()
        (y,) = run_engine(engine, view)
        assert torch.equal(y, contiguous), f"{shape} on {target}, {name}"
    for name, view in (
        ("batch expanded", x[:1].expand(4, -1, -1, -1)),
        ("channels expanded", x[:, :1].expand(-1, x.shape[1], -1, -1)),
        ("rows expanded", x[:, :, :1].expand(-1, -1, x.shape[2], -1)),
        ("one value", x[:1, :1, :1, :1].expand(2, *x.shape[1:])),
    ):
        (y,) = run_engine(engine, view)
        (contiguous,) = run_engine(engine, view.contiguous())
        assert torch.equal(y, contiguous), f"{shape} on {target}, {name}"


def check_not_finite(shape, target, positions=((0, 0), (-1, -1), (1, 0))):
    """NaN and infinities come out where they do in float64, and never in other images of the batch.

    PyTorch's float32 is no measure: with AVX-512 its GELU of +inf is NaN.
    """
    target = Target.of(target)
    block, clean, _ = block_case(shape, 3, seed=5, dtype=target.torch_dtype)
    engine = target.engine(as_network(block))
    (others,) = engine.run(clean, 2)
    clips = getattr(block, "activation", "") == "relu6"  # an infinity may then be an ordinary number
    for value in (torch.nan, torch.inf, -torch.inf):
        for row, column in positions:
            x = clean.clone()
            x[1, x.shape[1] // 2, min(row, shape.height - 1), min(column, shape.width - 1)] = value
            (y,) = run_engine(engine, x)
            expected = exact(block, x)
            what = f"{shape} on {target}, {value} at {(row, column)}"
            if not (clips and x[1].isinf().any()):
                assert not bool(expected[1].isfinite().all()), f"{what}: the test shows nothing"
            for other in (0, 2):
                assert torch.equal(y[other], others[other]), f"{what}: spread to image {other}"
            check_same_kind(y[1], expected[1], what, 4 * target.block_bound)


def check_bad_image(engine, network, images, value, what, bound=4 * BLOCK_BOUND):
    """A value that is not finite in the second of three images stays there, and comes out as in float64.

    Returns the float64 outputs.
    """
    clean = engine.run(images)
    bad = images.clone()
    bad[1, 0, 17, 40] = value
    expected = exact_network(network, bad)
    for y, c, e in zip(run_engine(engine, bad), clean, expected, strict=True):
        assert torch.equal(y[0], c[0])
        assert torch.equal(y[2], c[2])
        # A strided attention makes all of a map NaN; before it only the neighbourhood is.
        check_same_kind(y[1], e[1], what, bound)
    assert not bool(expected[0].isfinite().all())
    return expected


def check_same_kind(actual, expected, what, bound=4 * BLOCK_BOUND):
    """Where ``expected`` is NaN, +inf or -inf, so is ``actual``; elsewhere the numbers agree."""
    for kind in (torch.isnan, torch.isposinf, torch.isneginf):
        wrong = kind(actual) != kind(expected)
        assert not bool(wrong.any()), (
            f"{what}: {int(wrong.sum())} of {wrong.numel()} differ in {kind.__name__}; the first: "
            f"{float(actual[wrong][0])} where {float(expected[wrong][0])} is expected"
        )
    finite = expected.isfinite()
    if bool(finite.any()):
        # neither is exact: each is within the bound of the exact value
        found = relative_l2(actual[finite], expected[finite].double())
        assert found <= bound, f"{what}: relative L2 {found:.3e} > {bound:.3e}"


class PackingCounter:
    """Counts the engines that are packed."""

    def __init__(self, monkeypatch):
        self.count = 0
        original = cpu.Engine.__init__

        def counting(engine, *args, **kwargs):
            self.count += 1
            original(engine, *args, **kwargs)

        monkeypatch.setattr(cpu.Engine, "__init__", counting)


def saved_content(path):
    """(metadata, tensors) of a saved file."""
    import safetensors

    with safetensors.safe_open(path, "pt") as file:
        return file.metadata(), {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
