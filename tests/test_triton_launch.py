"""Compiling launches of Triton's kernels for the GPU at hand, without one."""

import pytest
import torch
from checks import seeded

pytest.importorskip("triton")

import triton

from effv2_kernels import shapes
from effv2_kernels.gpu.launch import FeatureMap
from effv2_kernels.triton import launch as launch_module
from effv2_kernels.triton.kernels import pack
from effv2_kernels.triton.launch import Launch


@pytest.mark.parametrize("missing", [None, 1, 2])
def test_processors_share_what_is_missing(monkeypatch, missing):
    """No process before the first pair that Triton's cache lacks; then all are compiled at once."""
    block = pack(shapes.random_block(shapes.ffn(24, 72, 5, 7), seeded(1)), torch.float16, "cpu")
    launches = block.plan(FeatureMap(2, 5, 7, 24, torch.float16), "ieee")
    pairs = [(launch, tile) for launch in launches for tile in launch.tiles]
    here, shared, told = [], [], []

    def compiled(launch, tile):
        if here:  # the first one is in the memory of this process: Triton tells nobody
            triton.knobs.compilation.listener(cache_hit=len(here) != missing, src=None)
        here.append((launch, tile))

    def users(**arguments):
        told.append(arguments)

    monkeypatch.setattr(triton.knobs.compilation, "listener", users)
    monkeypatch.setattr(Launch, "compile", compiled)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(launch_module, "compile_in_parallel", lambda *arguments: shared.append(arguments))
    Launch.compile_missing(pairs)
    if missing is None:
        assert (here, shared) == (pairs, [])
    else:
        assert here == pairs[: missing + 1]
        assert shared == [(pairs[missing + 1 :], 90)]
    assert len(told) == len(here) - 1
    assert triton.knobs.compilation.listener is users
