"""Plans of whole networks: their memory, and what a run does. None of it needs a GPU."""

import dataclasses

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")

from test_triton_plan import MOBILE, S0, SOME, planned

from effv2_kernels.gpu.launch import FeatureMap
from effv2_kernels.gpu.memory import lay_out, lifetimes
from effv2_kernels.gpu.packing import Packed
from effv2_kernels.gpu.plan import Plan
from effv2_kernels.triton.launch import Launch

aten = torch.ops.aten


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


class Replay(Packed):
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
    original = Launch.run
    change, message = BREAKS[name]

    def breaking(launch, tile, memory):
        original(launch, tile, memory)
        change(memory[launch.output])

    monkeypatch.setattr(Launch, "run", breaking)
    with pytest.raises(AssertionError, match=rf"^a plan .*({message})"):
        run_without_gpu(S0, 1)
