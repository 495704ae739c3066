"""The shared memory of each GPU: the tiles of CUDA kernels that fit it, and what is said where none does."""

import functools

import cuda_engines
import pytest
import torch
from cuda_engines import ATTENTION, CPU, FFN, NETWORK, decisions, images, made, right

from effv2_kernels import _cuda, create_model, sources
from effv2_kernels.cuda import launch as cuda_launch
from effv2_kernels.cuda.launch import Launch
from effv2_kernels.errors import UnavailableError
from effv2_kernels.gpu import tuning
from effv2_kernels.gpu.alternatives import Alternative
from effv2_kernels.gpu.kernels import kernels_of
from effv2_kernels.gpu.launch import FeatureMap
from effv2_kernels.gpu.one_launch import MOST_IMAGES
from effv2_kernels.gpu.resources import SHARED_BYTES

findings = cuda_engines.findings  # a fixture


def test_no_tile_fits_the_shared_memory(monkeypatch):
    """The message names the kernel and its bytes."""
    packed = kernels_of("cuda").pack(NETWORK.blocks[ATTENTION], torch.float16, CPU)
    launch = next(
        ln for ln in packed.plan(FeatureMap(1, 2, 2, 16, torch.float16), "ieee") if ln.kind == "attention"
    )
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA Test 9000")
    monkeypatch.setattr(cuda_launch, "shared_of_gpu", lambda: 1000)
    assert launch.compile(launch.tiles[0]) is None
    least = min(launch.shared_bytes(tile) for tile in launch.tiles)
    message = rf"of cuda_attention fits .* GPU \(NVIDIA Test 9000\): the smallest needs {least} bytes of it"
    with pytest.raises(UnavailableError, match=message):
        tuning.best_unmeasured(launch)


def test_the_shared_memory_of_a_gpu(monkeypatch):
    """As the driver tells; where there is none, that of the largest."""
    assert cuda_launch.shared_of_gpu() == 232448
    for told, most in ((101376, 101376), (0, 232448)):
        monkeypatch.setattr(_cuda, "most_shared_bytes", lambda told=told: told)
        assert cuda_launch.shared_of_gpu() == most


@functools.cache
def packed_network(variant):
    network = sources.read(create_model(f"efficientformerv2_{variant}"))
    return [kernels_of("cuda").pack(block, torch.float16, CPU) for block in network.blocks]


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 100, 120])
@pytest.mark.parametrize("variant", ["s0", "l"])
def test_tiles_fit_every_gpu(variant, capability, monkeypatch):
    """Every launch has some, and nothing is planned that has none; so has the one launch."""
    most = SHARED_BYTES[capability]
    monkeypatch.setattr(cuda_launch, "shared_of_gpu", lambda: most)
    packed = packed_network(variant)
    for batch in (1, 8, 256):
        x = FeatureMap(batch, 224, 224, 3, torch.float16)
        for block in packed:
            alternatives = block.alternatives(x, "ieee")
            for launch in (launch for a in alternatives for launch in a.launches):
                needed = [launch.shared_bytes(tile) for tile in launch.tiles]
                assert needed
                assert max(needed) <= most
            if batch <= MOST_IMAGES:
                assert any(a.joinable for a in alternatives)
            x = alternatives[0].launches[-1].output


def test_a_tile_in_one_launch_fits_the_gpu(monkeypatch):
    """Beside what that launch itself takes: another tile, or none."""
    packed = kernels_of("cuda").pack(NETWORK.blocks[FFN], torch.float16, CPU)
    launch = packed.plan(FeatureMap(1, 8, 8, 24, torch.float16), "ieee")[0]
    first = launch.tile_in_one
    monkeypatch.setattr(
        cuda_launch, "shared_of_gpu", lambda: launch.shared_bytes(first) + _cuda.NETWORK_BYTES
    )
    assert launch.tile_in_one is first
    monkeypatch.setattr(
        cuda_launch, "shared_of_gpu", lambda: launch.shared_bytes(first) + _cuda.NETWORK_BYTES - 1
    )
    smaller = launch.tile_in_one
    assert launch.shared_bytes(smaller) < launch.shared_bytes(first)
    monkeypatch.setattr(cuda_launch, "shared_of_gpu", lambda: 1000)
    assert launch.tile_in_one is None
    assert not Alternative.of([launch]).joinable


def test_an_alternative_that_does_not_fit_gives_way(monkeypatch):
    original = tuning.ready

    def ready(launches, tables):
        if any(
            ln.kind == "ffn" and ln.arguments["part"] == "widen" for ln in launches if isinstance(ln, Launch)
        ):
            raise UnavailableError("none of the 6 tiles of cuda_ffn fits into the shared memory of this GPU")
        return original(launches, tables)

    monkeypatch.setattr(tuning, "ready", ready)
    found = right(made("cuda"), images(2))
    assert decisions(found)[FFN].way == "whole"
    assert "cuda by channels cannot be launched: none of the 6 tiles" in decisions(found)[FFN].why
