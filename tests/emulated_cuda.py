"""CUDA kernels by the emulator of thread blocks: launches on poisoned memory that it knows by name."""

import math
import os
from contextlib import contextmanager

import pytest
import torch
from checks import assert_close, exact, in_poisoned_memory, relative_l2, same_bits, seeded

from effv2_kernels import shapes
from effv2_kernels.gpu.launch import FeatureMap
from effv2_kernels.gpu.resources import SHARED_BYTES

FOLDER = os.environ.get("EFFV2_TEST_CUDA")
needs_emulator = pytest.mark.skipif(
    not FOLDER, reason="make test-cuda-emulated builds what runs CUDA kernels here, and sets EFFV2_TEST_CUDA"
)
if FOLDER:
    from effv2_kernels import _cuda
    from effv2_kernels.cuda import kernels

DTYPES = [torch.float16, torch.bfloat16]
UNIT = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}

# First block, warp and lane first, and copies that come as late as they may; the other way round; and every
# access watched, in some order. What comes of it are the same bits.
FORWARDS = {"seed": 0}
BACKWARDS = {"seed": 1, "early_copies": True}
WATCHED = {"seed": 2, "watch": True}
ORDERS = (FORWARDS, BACKWARDS, WATCHED)

_GUARD = 64  # elements before and after every map


# How often values are rounded on their way through a block, and weights that they meet. In fp16 a sum in
# halves is four, their GELU two; in bf16 both are made in float.
_ROUNDINGS = {
    torch.float16: {
        "stem": 8,
        "ffn": 13,
        "attention": 12,
        "strided attention": 20,
        "conv": 2,
        "attention_downsample": 18,
        "head": 3,
    },
    torch.bfloat16: {
        "stem": 5,
        "ffn": 6,
        "attention": 7,
        "strided attention": 10,
        "conv": 2,
        "attention_downsample": 9,
        "head": 3,
    },
}

# The relative L2 of a handful of values is large whenever they happen to cancel: maps of fewer than these are
# run with more images, up to so many.
_FEW = 2000
_MOST_IMAGES = {"attention": 24, "attention_downsample": 24, "head": 400}


def rounded(times, dtype):
    """Relative L2 of what is independently rounded so often.

    In the mean of squares that is u / sqrt(6) each time, for a unit roundoff u; three times the sum of the
    squares is allowed.
    """
    return math.sqrt(times / 2) * UNIT[dtype]


def bound_of(shape, dtype):
    """Relative L2 for a block; of small maps in bf16 beyond HALF_BLOCK_BOUND, which S0 keeps."""
    strided = shape.kind == "attention" and shape.options["stride"] > 1
    times = _ROUNDINGS[dtype]["strided attention" if strided else shape.kind]
    if shape.kind == "conv" and shape.options.get("activation", "none") != "none":
        times += 2
    return rounded(times, dtype)


def compiled_shapes():
    """The names of the compiled kernels of each kind."""
    return _cuda.SHAPES


def configure(**how):
    """Of all launches until the next call; see csrc/tests/cuda/emulator.h."""
    _cuda.configure(**how)


def reset_counts():
    _cuda.reset_counts()


def passes_by_place():
    """(accesses, passes) of shared memory by the line of source, of launches with ``count_passes``."""
    return _cuda.passes_by_place()


def kernels_of_cuda():
    """What the backend offers; its module can be imported where the emulator is."""
    return kernels


class Memory:
    """Maps in NaN, with NaN on both sides that must survive."""

    def __init__(self):
        self.tensors = {}
        self._whole = []

    def add(self, feature_map):
        whole = torch.full((feature_map.reach + 2 * _GUARD,), torch.nan, dtype=feature_map.dtype)
        self._whole.append(whole)
        self.tensors[feature_map] = whole[_GUARD:-_GUARD]

    def give(self, feature_map, x):
        """An image from outside, with the strides that it has."""
        self.tensors[feature_map] = in_poisoned_memory(x)

    def nchw(self, feature_map):
        m = feature_map
        return self.tensors[m].view(m.images, m.height, m.width, m.channels).permute(0, 3, 1, 2)

    def check(self):
        for whole in self._whole:
            for guard in (whole[:_GUARD], whole[-_GUARD:]):
                assert bool(guard.isnan().all()), "a kernel wrote beside a map"


def tensor_buffer(name, tensor, *, writable=False):
    return _cuda.Buffer(name, tensor.data_ptr(), tensor.numel() * tensor.element_size(), writable)


def buffers_of(launch, memory):
    """Its maps and weights by name: what the emulator holds its accesses to, as long as they live."""
    named = {}
    for name, value in launch.arguments.items():
        if isinstance(value, torch.Tensor):
            named[name] = tensor_buffer(name, value)
        elif isinstance(value, FeatureMap) and not (name == "residual" and value is launch.arguments["x"]):
            size = value.reach * value.dtype.itemsize
            written = value in launch.written
            named[name] = _cuda.Buffer(name, memory.tensors[value].data_ptr(), size, written)
            if value is launch.counters:  # the host clears them
                named[name].is_written()
    return named


def run_launch(launch, memory, tile, **how):
    """Into new memory. how: see ``configure``."""
    configure(**how)
    for written in launch.written:
        memory.add(written)
    named = buffers_of(launch, memory)
    launch.run(tile, memory.tensors)
    del named


def fitting(launch):
    """The tiles that the shared memory of a GPU holds, from 9.0 on: it leaves out the rest as well."""
    return [tile for tile in launch.tiles if launch.own_step(tile).extent.shared_bytes <= SHARED_BYTES[90]]


def run_launches(launches, x, image, tiles=None, **how):
    """The output (N, C, H, W) of launches in order. x: (N, C, H, W). tiles: one of each, else the first."""
    memory = Memory()
    memory.give(image, x)
    for launch, tile in zip(launches, tiles or [fitting(launch)[0] for launch in launches], strict=True):
        run_launch(launch, memory, tile, **how)
    memory.check()
    return memory.nchw(launches[-1].output)


def image_of(x, strides=None):
    """A dense map is in channels_last."""
    n, c, h, w = x.shape
    return FeatureMap(n, h, w, c, x.dtype, strides)


def packed_case(shape, dtype, batch=2, *, seed=0):
    """(packed block, x in channels_last, the float64 reference's output)."""
    g = seeded(seed + 131 * shape.height + shape.width)
    block = shapes.random_block(shape, g)
    x = shapes.random_input(shape, g, batch).to(dtype).contiguous(memory_format=torch.channels_last)
    return kernels.pack(block, dtype, "cpu"), x, exact(block, x)


def in_every_order(launches, x, image, tiles=None, orders=ORDERS):
    """The output, which has the same bits in each."""
    outputs = [run_launches(launches, x, image, tiles, **how) for how in orders]
    for how, y in zip(orders, outputs, strict=True):
        assert same_bits(y, outputs[0]), f"other bits with {how}"
    return outputs[0]


def check(shape, dtype, batch=2, *, plan="plan", orders=ORDERS):
    """A block of some shape against float64. plan: the method that makes its launches, one or several."""
    packed, x, expected = packed_case(shape, dtype, batch)
    images = min(_FEW // expected[0].numel(), _MOST_IMAGES.get(shape.kind, 100))
    if images > batch:
        packed, x, expected = packed_case(shape, dtype, images)
    image = image_of(x)
    launches = getattr(packed, plan)(image, *(["ieee"] if plan == "plan" else []))
    y = in_every_order(launches, x, image, orders=orders)
    bound = bound_of(shape, dtype)
    assert_close(y.reshape(expected.shape), expected, bound, f"{shape} {dtype}", dtype)
    y = run_launches(launches, x, image, approximate=True)
    assert_close(y.reshape(expected.shape), expected, 1.5 * bound, f"{shape} {dtype}, approximated", dtype)
    return launches


def with_every_tile(shape, dtype, batch=1, *, plan="plan", orders=ORDERS):
    """Each launch of a block with each of its tiles, the first one last: its output goes on.

    Tiles differ by the order of sums in float alone. Returns what ran: pairs of a kind, of FFNs and products
    their part or source, and the name of a compiled kernel.
    """
    packed, x, expected = packed_case(shape, dtype, batch)
    image = image_of(x)
    launches = getattr(packed, plan)(image, *(["ieee"] if plan == "plan" else []))
    memory = Memory()
    memory.give(image, x)
    ran = set()
    for launch in launches:
        outputs = {}
        for tile in fitting(launch)[::-1]:
            for how in orders:
                run_launch(launch, memory, tile, **how)
                y = memory.tensors[launch.output]
                assert same_bits(y, outputs.setdefault(str(tile), y)), f"{launch.name} with {tile}, {how}"
            kind = launch.arguments.get("part", launch.arguments.get("source", launch.kind))
            ran.add((kind, tile.name))
        for tile, found in outputs.items():
            error = relative_l2(found, y.double())
            assert error <= UNIT[dtype], f"{shape}, {launch.name} with {tile}: {error:.1e} off another tile"
    memory.check()
    y = memory.nchw(launches[-1].output).reshape(expected.shape)
    assert_close(y, expected, bound_of(shape, dtype), f"{shape} {dtype}", dtype)
    return ran


@contextmanager
def one_thread():
    """PyTorch's other threads would only wait, and take the time of the emulator."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
