"""Plans of whole networks: launches, bytes and memory. None of it needs a GPU."""

import dataclasses

import pytest
import torch
from checks import seeded
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")

from effv2_kernels import shapes
from effv2_kernels.families import families
from effv2_kernels.triton import plan as plans
from effv2_kernels.triton.launch import FeatureMap
from effv2_kernels.triton.memory import lay_out, lifetimes
from effv2_kernels.triton.plan import Plan, pack, plan_blocks

aten = torch.ops.aten

# The shapes of the blocks of every variant of every family.
VARIANTS = {variant: family.variant_shapes(variant) for family in families() for variant in family.VARIANTS}
S0, MOBILE = "efficientformerv2_s0", "mobilenetv2_100"
SOME = [
    name for name in VARIANTS if name.startswith("efficientformerv2") or name in (MOBILE, "mobilenetv2_140")
]

LAUNCHES = {"stem": 2, "ffn": 2, "attention": 4, "conv": 1, "attention_downsample": 5, "head": 2}


def is_strided(shape):
    """Whether an attention block resizes: its depthwise convolution and that have launches of their own."""
    return shape.kind == "attention" and shape.options["stride"] == 2


def output_pixels(shape):
    stride = int(shape.options.get("stride", 1))
    return -(-shape.height // stride) * -(-shape.width // stride)


def is_cut_by_channels(shape, batch):
    """See effv2_kernels.triton.ffn."""
    return output_pixels(shape) <= 64 or batch * output_pixels(shape) <= 8192


def number_of_launches(shape, batch):
    if "fc1" in shape.without and not is_cut_by_channels(shape, batch):
        return 1
    return LAUNCHES[shape.kind] + 2 * is_strided(shape)


def planned(variant, batch, dtype=torch.float16):
    """(block shapes, image, launches of each block)."""
    g = seeded(5)
    made = VARIANTS[variant]
    packed = [pack(shapes.random_block(shape, g), dtype, "cpu") for shape in made]
    image = FeatureMap(batch, 224, 224, 3, dtype, (3 * 224 * 224, 224 * 224, 224, 1))
    return made, image, plan_blocks(packed, image, "ieee")


@pytest.mark.parametrize(
    ("variant", "launches"),
    [
        ("efficientformerv2_s0", 59),
        ("efficientformerv2_s1", 73),
        ("efficientformerv2_s2", 107),
        ("efficientformerv2_l", 141),
        ("mobilenetv2_100", 37),
        ("mobilenetv2_140", 37),
    ],
)
def test_number_of_launches(variant, launches):
    for batch in (1, 32):
        made, _, blocks = planned(variant, batch)
        assert [len(b) for b in blocks] == [number_of_launches(shape, batch) for shape in made]
        assert sum(map(len, blocks)) == launches


@pytest.mark.parametrize("variant", [S0, MOBILE])
@pytest.mark.parametrize("batch", [1, 32])
def test_activations_that_move(batch, variant):
    """Each launch reads its inputs once and writes its output once; nothing else exists in memory."""
    made, _, blocks = planned(variant, batch)
    for shape, launches in zip(made, blocks, strict=True):
        pixels = batch * shape.height * shape.width
        small = batch * -(-shape.height // 2) * -(-shape.width // 2)
        width = shape.sizes["in"]
        moved = sum(
            m.elements
            for launch in launches
            for m in {id(v): v for v in launch.arguments.values() if isinstance(v, FeatureMap)}.values()
        )
        if shape.kind == "ffn":
            hidden, out_pixels = shape.sizes["hidden"], batch * output_pixels(shape)
            # x, h, d | d, x, y; or without d, the depthwise result: x, h | h, x, y. Without a residual no
            # second x, and without fc1 x is h.
            expected = out_pixels * shape.sizes.get("out", width)
            expected += pixels * width * (1 + shape.options.get("residual", 1))
            if "fc1" not in shape.without:
                expected += pixels * hidden * (1 if is_cut_by_channels(shape, batch) else 2)
            if is_cut_by_channels(shape, batch):
                expected += 2 * out_pixels * hidden
            assert moved == expected
        elif shape.kind == "conv":  # x, y
            assert moved == pixels * width + batch * output_pixels(shape) * shape.sizes["out"]
        elif shape.kind == "stem":  # x, m | m, y
            out = shape.sizes["out"]
            assert moved == pixels * 3 + batch * (2 * 112 * 112 * out // 2 + 56 * 56 * out)
        elif shape.kind == "attention":  # x, qkv | qkv, shares | qkv, shares, u | u, x, y: no logits
            tokens = small if is_strided(shape) else pixels
            # And x, small x | small x, qkv; u, resized u | resized u, x, y.
            strided = 2 * tokens * width + 2 * 1024 * pixels if is_strided(shape) else 0
            shares = 8 * tokens * 64
            assert moved == 3 * pixels * width + tokens * (3 * 1536 + 2 * 1024) + 2 * shares + strided
        elif shape.kind == "head":  # x, mean | mean, logits
            assert moved == pixels * width + batch * (2 * width + 1000)
        elif shape.kind == "attention_downsample":  # x, small x | small x, q | x, kv | q, kv, u | u, x, y
            of_small = 2 * width + 2 * 128 + 2 * 512 + shape.sizes["out"]
            assert moved == pixels * (3 * width + 2 * 640) + small * of_small


@pytest.mark.parametrize(
    ("variant", "published"), [(S0, 0.396e9), (MOBILE, 0.300e9), ("mobilenetv2_140", 0.582e9)]
)
def test_multiply_adds_are_those_of_the_network(variant, published):
    """At 224 x 224; of S0 the local branches and resizing are not counted."""
    _, _, blocks = planned(variant, 1)
    macs = sum(launch.macs for launches in blocks for launch in launches)
    assert macs == pytest.approx(published, rel=0.02)


@pytest.mark.parametrize("variant", SOME)
@pytest.mark.parametrize("batch", [1, 256])
def test_buffers_alive_together_do_not_overlap(variant, batch):
    _, image, blocks = planned(variant, batch)
    launches = [launch for made in blocks for launch in made]
    outside = {launches[-1].output, blocks[5][-1].output}
    layout = lay_out(launches, outside)
    alive = lifetimes(launches, outside)
    assert image not in layout.offsets
    assert set(layout.offsets) == {m for launch in launches for m in launch.written} - outside
    found = list(layout.offsets)
    for i, a in enumerate(found):
        assert layout.offsets[a] % 256 == 0
        assert layout.offsets[a] + a.bytes <= layout.bytes
        for b in found[:i]:
            if alive[a].overlaps(alive[b]):
                first, second = sorted((a, b), key=lambda m: layout.offsets[m])
                assert layout.offsets[first] + first.bytes <= layout.offsets[second]


@pytest.mark.parametrize("variant", [S0, MOBILE])
def test_memory_is_little_more_than_what_is_alive_at_once(variant):
    _, _, blocks = planned(variant, 32)
    launches = [launch for made in blocks for launch in made]
    outside = {launches[-1].output}
    alive = lifetimes(launches, outside)
    peak = max(
        sum(m.bytes for m, life in alive.items() if life.first <= i <= life.last)
        for i in range(len(launches))
    )
    assert peak <= lay_out(launches, outside).bytes <= 1.05 * peak


class Views(TorchDispatchMode):
    """Counts what is allocated, and refuses every operation but those that allocate and those that look.

    All others compute something outside of the planned launches; those that bring a value to the host wait.
    """

    ALLOCATE = (aten.new_empty.default, aten.empty.memory_format)
    LOOK = (
        *(aten.slice.Tensor, aten.view.default, aten.view.dtype, aten.permute.default),
        *(aten.as_strided.default, aten.alias.default, aten.detach.default, torch.ops.prim.device.default),
    )

    def __init__(self):
        super().__init__()
        self.allocated = []

    def __torch_dispatch__(self, operation, types, arguments=(), named=None):
        if operation not in (*self.ALLOCATE, *self.LOOK):
            raise AssertionError(f"a plan calls {operation}")
        made = operation(*arguments, **(named or {}))
        if operation in self.ALLOCATE:
            self.allocated.append(made)
        return made


class Recorder:
    """Stands for a kernel: keeps what it is launched with."""

    def __init__(self, launches, name):
        self.launches, self.__name__ = launches, name

    def __getitem__(self, grid):
        return lambda **values: self.launches.append((self.__name__, grid, values))


@pytest.fixture
def no_waiting(monkeypatch):
    """What waits for a GPU without being an operation on tensors."""

    def waits(*args, **kwargs):
        raise AssertionError("a plan waits for the GPU")

    for owner, name in (
        (torch.cuda, "synchronize"),
        (torch.cuda.Event, "synchronize"),
        (torch.cuda.Stream, "synchronize"),
        (torch.accelerator, "synchronize"),
    ):
        monkeypatch.setattr(owner, name, waits)


def run_without_gpu(variant, batch):
    """(plan, recorded launches, allocated tensors, outputs) of a run on the device "meta"."""
    _, image, blocks = planned(variant, batch)
    made = Plan([Replay(launches) for launches in blocks], image, [(len(blocks) - 1, None)], "ieee")
    recorded = []
    made.launches = [
        dataclasses.replace(launch, kernel=Recorder(recorded, launch.name)) for launch in made.launches
    ]
    # Tensors there have no values, so whatever needs some fails; the device "cuda" needs a build for it.
    images = torch.empty(batch, 3, 224, 224, dtype=torch.float16, device="meta")
    with Views() as views:
        outputs = made.run(images)
    return made, recorded, views.allocated, outputs


class Replay:
    """A packed block that is planned already."""

    def __init__(self, launches):
        self.launches = launches

    def plan(self, x, precision):
        return self.launches


@pytest.mark.parametrize("variant", SOME)
def test_a_run_allocates_its_memory_and_launches_and_does_nothing_else(variant, no_waiting):
    """No operation of PyTorch computes, copies or waits between two launches, so the CPU runs ahead."""
    batch = 3
    plan, recorded, allocated, (logits,) = run_without_gpu(variant, batch)
    assert [name for name, _, _ in recorded] == [launch.name for launch in plan.launches]
    assert [grid for _, grid, _ in recorded] == [
        (launch.programs(tile),) for launch, tile in zip(plan.launches, plan.tiles, strict=True)
    ]
    arena, output = allocated
    assert (arena.dtype, arena.shape) == (torch.uint8, (plan.bytes,))
    assert (output.dtype, output.numel()) == (torch.float16, batch * 1000)
    assert logits.shape == (batch, 1000, 1, 1)
    assert arena.device == output.device == logits.device == torch.device("meta")
    for (_, _, values), launch in zip(recorded, plan.launches, strict=True):
        for name, value in launch.arguments.items():
            if isinstance(value, FeatureMap):
                assert values[name].dtype == value.dtype
                assert values[name].numel() == value.elements
                assert values[name].device.type == "meta"


BREAKS = {
    "a value": (lambda y: y[0:1].item(), "_local_scalar_dense"),
    "a condition": (lambda y: bool(y[0:1]), "_local_scalar_dense|is_nonzero"),
    "to the host": (lambda y: y.cpu(), "_to_copy"),
    "indices": (lambda y: y.nonzero(), "nonzero"),
    "a copy": (lambda y: y.clone(), "clone"),
    "a fill": (lambda y: y.zero_(), "zero_"),
    "waiting": (lambda y: torch.cuda.synchronize(), "waits for the GPU"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_anything_else_would_be_noticed(name, no_waiting, monkeypatch):
    original = plans.execute
    change, message = BREAKS[name]

    def breaking(launch, tile, memory):
        original(launch, tile, memory)
        change(memory[launch.output])

    monkeypatch.setattr(plans, "execute", breaking)
    with pytest.raises(AssertionError, match=rf"^a plan .*({message})"):
        run_without_gpu(S0, 1)
