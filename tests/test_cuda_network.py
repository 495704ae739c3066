"""Whole networks by CUDA kernels in the emulator: launch by launch, and as the tiles of a single launch."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from checks import HALF_NETWORK_BOUND, assert_close, exact_network, same_bits, seeded
from emulated_cuda import (
    DTYPES,
    UNIT,
    buffers_of,
    configure,
    kernels_of_cuda,
    needs_emulator,
    one_thread,
    tensor_buffer,
)
from models import SMALL, SMALL_MOBILE, TINY, MobileSpec, Spec, randomise

from effv2_kernels import create_model, sources
from effv2_kernels.families.efficientformer_v2 import Architecture
from effv2_kernels.families.mobilenet_v2 import scaled

pytestmark = needs_emulator


@pytest.fixture(autouse=True)
def quiet_pytorch():
    with one_thread():
        yield


@dataclass
class Case:
    """A network that is planned for some images, its outputs in float64, and those of single launches."""

    plan: Any
    images: torch.Tensor
    expected: list
    single: list

    @classmethod
    def of(cls, network, images, how=None):
        from effv2_kernels.gpu.planner import Images, Planner

        # By single launches, whatever an engine would choose.
        planner = Planner(network, kernels_of_cuda(), images.dtype, torch.device("cpu"))
        plan = planner.outline(Images.like(images, "ieee"))
        configure(**(how or {}))
        # NaN in every format: what shares bytes with a dead map must not read it.
        arena = torch.full((plan.bytes,), 0xFF, dtype=torch.uint8)
        return cls(plan, images, exact_network(network, images), plan.run(images, arena))

    def check_single(self):
        """In fp16 within as many unit roundoffs as in bf16."""
        bound = HALF_NETWORK_BOUND * UNIT[self.images.dtype] / UNIT[torch.bfloat16]
        for y, expected in zip(self.single, self.expected, strict=True):
            assert_close(y.reshape(expected.shape), expected, bound, "single launches", self.images.dtype)

    def one_launch(self, blocks):
        from effv2_kernels.cuda.network import OneLaunch

        plan = self.plan
        return OneLaunch(plan.launches, plan.image, plan.outputs, torch.device("cpu"), blocks)


class Control:
    """The memory of a launch whose tasks are counted, from launch to launch."""

    def __init__(self, one):
        self.one = one
        self.memory = torch.zeros(one.control_bytes, dtype=torch.uint8)

    def run(self, images, **how):
        configure(**how)
        arena = torch.full((self.one.bytes,), 0xFF, dtype=torch.uint8)
        return self.one.run(images, arena, self.memory)


def check_one_launch(case, blocks, runs):
    """Several launches on one control memory, to the bits of the single ones. runs: how each is emulated."""
    control = Control(case.one_launch(blocks))
    for how in runs:
        found = control.run(case.images, **how)
        for y, single in zip(found, case.single, strict=True):
            assert same_bits(y, single), f"{blocks} blocks, {how}"


def watched_run(case, control, **how):
    """With every access watched, of weights and of what the launch itself is told as well."""
    one = control.one
    named = [list(buffers_of(weights_alone(launch), None).values()) for launch in case.plan.launches]
    named += [
        tensor_buffer(name, data) for name, data in zip(("tasks", "steps", "parts"), one._plan, strict=True)
    ]
    named.append(tensor_buffer("images", case.images))
    arena = torch.full((one.bytes,), 0xFF, dtype=torch.uint8)
    counters = tensor_buffer("control", control.memory, writable=True)
    counters.is_written()
    named += [counters, tensor_buffer("arena", arena, writable=True)]
    images = NamingOutputs(case.images, named)
    configure(watch=True, **how)
    found = one.run(images, arena, control.memory)
    del named, images
    return found


class NamingOutputs:
    """Images whose outputs the emulator is told of, in NaN."""

    is_cuda = False
    device = torch.device("cpu")

    def __init__(self, images, named):
        self._images, self._named = images, named

    def data_ptr(self):
        return self._images.data_ptr()

    def new_empty(self, elements, dtype):
        made = torch.full((elements,), torch.nan, dtype=dtype)
        self._named.append(tensor_buffer("output", made, writable=True))
        return made


def weights_alone(launch):
    tensors = {k: v for k, v in launch.arguments.items() if isinstance(v, torch.Tensor)}
    return replace(launch, arguments=tensors, _steps={})


# --- S0 --------------------------------------------------------------------------------------------------


def s0(size, batch, dtype):
    sizes = {} if size == 224 else {"img_size": size}
    network = sources.read(randomise(create_model("efficientformerv2_s0", **sizes), seeded(31)))
    return network, torch.randn(batch, 3, size, size, generator=seeded(32)).to(dtype)


@pytest.fixture(scope="module", params=DTYPES, ids=str)
def published(request):
    with one_thread():
        return Case.of(*s0(224, 1, request.param))


def test_s0(published):
    published.check_single()


@pytest.mark.parametrize("blocks", [1, 2, 7, 132])
def test_s0_in_one_launch(published, blocks):
    """So many blocks of threads; fewer of them at a time, too, and the next launch where the counters are."""
    runs = [{"seed": 0}, {"seed": 1, "early_copies": True}]
    if blocks == 132:
        runs = [{"seed": 5}, {"seed": 6, "resident": 20}, {"seed": 1}]
    check_one_launch(published, blocks, runs)


def test_two_images_in_one_launch():
    case = Case.of(*s0(224, 2, torch.float16), {"seed": 3, "resident": 8})
    case.check_single()
    check_one_launch(case, 132, [{"seed": 4, "resident": 30}])


def test_counters_go_on_around_zero():
    """As they do after 2^32 tiles: flags and counter are what many launches would have made them."""
    case = Case.of(*s0(64, 1, torch.float16))
    one = case.one_launch(7)
    control = Control(one)
    per_launch = len(list(one.tasks)) + 2 * 7  # each block ends with two tickets that are no tasks
    launches = 2**32 - 1
    words = control.memory.view(torch.int32)
    words[:2] = torch.tensor([launches * per_launch]).view(torch.int32)
    parts = torch.frombuffer(bytearray(one._schedule.parts), dtype=torch.int32).long()
    assert len(parts) == len(words) - 2
    words[2:] = (parts * launches).to(torch.int32)
    for seed in (0, 1, 2):
        (y,) = control.run(case.images, seed=seed)
        assert same_bits(y, case.single[0])
    assert torch.equal(words[2:], (parts * (launches + 3)).to(torch.int32))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_s0_watched(dtype):
    case = Case.of(*s0(64, 1, dtype), {"seed": 1})
    case.check_single()
    control = Control(case.one_launch(9))
    for how in ({"seed": 0}, {"seed": 2, "early_copies": True, "resident": 4}):
        (y,) = watched_run(case, control, **how)
        assert same_bits(y, case.single[0])


# --- Others ----------------------------------------------------------------------------------------------

ODD = Spec(
    "odd widths", Architecture((24, 40, 72, 104), (1, 1, 2, 2), (1.0, 2.0, 3.0, 2.0), (2, 1)), (72, 104)
)
NETWORKS = [
    TINY,
    SMALL[0],
    ODD,
    Spec("one pixel", Architecture((16, 24, 32, 48), (1, 1, 1, 1), 4, 1), img_size=7, num_classes=99),
    SMALL_MOBILE[0],
    MobileSpec("mobilenet_v2 x0.35", scaled(0.35), img_size=(40, 33), num_classes=50),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("spec", NETWORKS, ids=lambda spec: spec.name)
def test_network(spec, dtype):
    network = sources.read(spec.build(seeded(33)))
    case = Case.of(network, spec.images(seeded(34), batch=2).to(dtype), {"seed": 1, "early_copies": True})
    case.check_single()
    check_one_launch(case, 5, [{"seed": 0}, {"seed": 7}])


@pytest.mark.parametrize("spec", [TINY, SMALL_MOBILE[0]], ids=lambda spec: spec.name)
def test_network_watched(spec):
    network = sources.read(spec.build(seeded(35)))
    case = Case.of(network, spec.images(seeded(36), batch=2).half())
    control = Control(case.one_launch(6))
    for how in ({"seed": 1}, {"seed": 3, "early_copies": True}):
        for y, single in zip(watched_run(case, control, **how), case.single, strict=True):
            assert same_bits(y, single)


NORMS = (True, False, True, False)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_feature_maps(dtype):
    """Outputs while later blocks run, some scaled and shifted: each is a buffer of its own."""
    network = sources.read(SMALL[0].build(seeded(37), features_only=True, num_classes=0, feature_norms=NORMS))
    case = Case.of(network, SMALL[0].images(seeded(38)).to(dtype))
    assert len(case.expected) == 4
    case.check_single()
    check_one_launch(case, 5, [{"seed": 0}, {"seed": 7}])
    for y, single in zip(watched_run(case, Control(case.one_launch(3)), seed=2), case.single, strict=True):
        assert same_bits(y, single)


def test_images_in_channels_last():
    network = sources.read(TINY.build(seeded(39)))
    x = TINY.images(seeded(40), batch=2).half()
    cases = [Case.of(network, x), Case.of(network, x.contiguous(memory_format=torch.channels_last))]
    assert same_bits(cases[0].single[0], cases[1].single[0])
    check_one_launch(cases[1], 4, [{"seed": 2}])
