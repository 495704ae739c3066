"""The CUDA kernels by the emulator, beside Triton's: engines of a small network, and times that are made up.

What imports this is skipped but in make test-cuda-emulated.
"""

import os

import pytest
import torch
from checks import HALF_NETWORK_BOUND, assert_close, exact_network, one_torch_thread, seeded
from models import TINY

if not os.environ.get("EFFV2_TEST_CUDA"):
    pytest.skip("make test-cuda-emulated runs these", allow_module_level=True)
pytest.importorskip("triton")

from effv2_kernels import _cuda, sources
from effv2_kernels.cuda.launch import Launch
from effv2_kernels.gpu import comparison, engine, planner, tuning
from effv2_kernels.gpu.engine import Engine
from effv2_kernels.gpu.findings import Findings
from effv2_kernels.gpu.kernels import kernels_of
from effv2_kernels.gpu.resources import Resources
from effv2_kernels.triton.launch import Launch as TritonLaunch

CPU = torch.device("cpu")
NETWORK = sources.read(TINY.build(seeded(100)))
KINDS = [block.kind for block in NETWORK.blocks]
FFN, ATTENTION = KINDS.index("ffn"), KINDS.index("attention")


@pytest.fixture(autouse=True)
def findings(monkeypatch, tmp_path):
    """Of a GPU that nothing is known of; a list, whose last is in use."""
    monkeypatch.setenv("EFFV2_CACHE_DIR", str(tmp_path))
    _cuda.configure()
    found = [Findings("NVIDIA Test 9000", "580.65")]
    monkeypatch.setattr(planner, "findings_of", lambda device: found[-1])
    with one_torch_thread():
        yield found


@pytest.fixture
def clock(monkeypatch):
    """What tune() measures: CUDA is twice as fast as Triton, by channels most of all, and in one launch."""
    times = {"triton": 2.0, "cuda": 1.0, "part=widen": 0.5, "one launch": 3.0, "launches": 4.0}

    def of(launches, tiles):
        keys = " ".join([launches[0].backend, *(launch.key for launch in launches)])
        return [ms for name, ms in times.items() if name in keys][-1]

    monkeypatch.setattr(engine, "require_gpu", lambda device: None)
    monkeypatch.setattr(tuning, "milliseconds", lambda launch, tile: 1.0 + launch.tiles.index(tile))
    monkeypatch.setattr(tuning, "compile_missing", lambda pairs: None)
    for kind in (Launch, TritonLaunch):
        monkeypatch.setattr(kind, "compile", lambda launch, tile: Resources(64, 0, 1024))
    monkeypatch.setattr(comparison, "milliseconds_of_launches", of)
    monkeypatch.setattr(
        comparison,
        "milliseconds_of_plan",
        lambda plan, x: times["one launch" if "one launch" in plan.key else "launches"],
    )
    return times


def made(backend, network=NETWORK, dtype=torch.float16):
    return Engine(network, kernels_of(backend), dtype, CPU)


def images(batch=1, dtype=torch.float16):
    return TINY.images(seeded(101), batch).to(dtype)


def right(found, x=None, network=NETWORK):
    x = images() if x is None else x
    for y, expected in zip(found.run(x), exact_network(network, x), strict=True):
        assert_close(y, expected, HALF_NETWORK_BOUND, dtype=x.dtype)
    return found


def tuned(backend, x=None):
    found = made(backend)
    found.tune(images() if x is None else x, lambda what, share: None)
    return found


def decisions(found):
    return found.decisions(32, 32)


def row(found):
    return found.one_launch(32, 32)
