"""One network at one batch in fp16 at 224x224 by CUDA, by each way to launch it, beside Triton's kernels.

Contestants take turns as in ``speed``: "cuda" is called as its users call it, and has chosen by itself
whether it is one launch or a graph; "cuda graph" is a captured graph of single launches, "cuda one launch"
the network in one, "triton" the same model by Triton's kernels.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bench.gpu import cuda_parity, speed, timing
from bench.gpu.models import shapes_of
from bench.gpu.parity import on_device
from effv2_kernels import blocks
from effv2_kernels.gpu.engine import Engine
from effv2_kernels.gpu.graph import Graph
from effv2_kernels.gpu.launch import FeatureMap
from effv2_kernels.gpu.timing import milliseconds
from effv2_kernels.shapes import BlockShape, random_block

BACKEND = "cuda"


def measure(
    variant: str, batch: int, device: torch.device, *, seconds: float, tuned: bool, triton_tuned: bool
) -> dict[str, Any]:
    """One figure, as gpu.json holds it. seconds: of timing. tuned: whether CUDA's, and Triton's tiles were.

    ms, times_triton (how many times faster than Triton's) and rounds_ms are by contestant; refused says which
    of them could not run, or were wrong, and why. blocks: how many are run in which way. ``failure`` says
    that what users call differs from Triton's outputs by more than rounding.
    """
    inputs = speed.inputs_of(batch, device)
    triton = speed.optimised(variant, device, "triton")
    fast = speed.optimised(variant, device, BACKEND)
    with torch.inference_mode():
        runs, refused = contestants(fast, inputs[0])
        runs["triton"] = triton
        expected = triton(inputs[0])
        before = {name: speed.difference(run(inputs[0]), expected) for name, run in runs.items()}
        rounds = timing.interleave(runs, inputs, seconds)
        kernels = {name: timing.kernels(run, inputs) for name, run in runs.items() if name != "cuda"}
        after = {name: speed.difference(run(inputs[0]), expected) for name, run in runs.items()}
    worst = {name: max(before[name], after[name]) for name in runs}
    for name in [name for name in runs if name not in ("cuda", "triton") and worst[name] > speed.DIFFERENCE]:
        refused[name] = too_different(worst[name])
        del rounds[name]
    ms = {name: statistics.median(values) for name, values in rounds.items()}
    found: dict[str, Any] = {
        "variant": variant,
        "batch": batch,
        "ms": ms,
        "times_triton": {
            name: timing.median_ratio(rounds["triton"], values)
            for name, values in rounds.items()
            if name != "triton"
        },
        "images_per_second": 1e3 * batch / ms["cuda"],
        "tuned": tuned,
        "triton_tuned": triton_tuned,
        "blocks": ways_of_blocks(fast),
        "difference_from_triton": {name: w if w < float("inf") else None for name, w in worst.items()},
        "refused": refused,
        "kernels_us": kernels,
        "rounds_ms": {name: [float(f"{ms:.5g}") for ms in values] for name, values in rounds.items()},
    }
    if worst["cuda"] > speed.DIFFERENCE:
        found["failure"] = too_different(worst["cuda"])
    return found


def too_different(found: float) -> str:
    return f"differs from Triton's outputs by {found:.2e}, allowed are {speed.DIFFERENCE:.0e}"


def untuned(variant: str, batch: int, device: torch.device, *, seconds: float) -> dict[str, float]:
    """Milliseconds of each way to launch, with the tiles that it has on this GPU so far."""
    fast = speed.optimised(variant, device, BACKEND)
    inputs = speed.inputs_of(batch, device)
    with torch.inference_mode():
        runs, _ = contestants(fast, inputs[0])
        rounds = timing.interleave(runs, inputs, seconds)
    return {name: statistics.median(values) for name, values in rounds.items()}


def tune(
    variant: str, batch: int, device: torch.device, go_on: Callable[[], bool]
) -> dict[str, dict[str, float]] | None:
    """As ``speed.tune``, of all that CUDA's kernels can choose."""
    return speed.tune_engine(speed.optimised(variant, device, BACKEND), batch, device, go_on)


def contestants(fast: Any, x: Tensor) -> tuple[dict[str, timing.Run], dict[str, str]]:
    """A model by cuda as it is called, and by each way to launch; and why there are not more of them."""
    runs: dict[str, timing.Run] = {"cuda": fast}
    refused: dict[str, str] = {}
    single, one, why = plans(fast, x)
    try:
        graph = Graph(single, x)
        runs["cuda graph"] = lambda images: graph.replay(images)[0].flatten(1)
    except RuntimeError as error:
        refused["cuda graph"] = f"{type(error).__name__}: {error}"[:2000]
    if one is None:
        refused["cuda one launch"] = why
        return runs, refused
    runs["cuda one launch"] = lambda images: one.run(images)[0].flatten(1)
    return runs, refused


def plans(fast: Any, x: Tensor) -> tuple[Any, Any, str]:
    """Of an optimised model for images like x: single launches, the one launch or None, and why not."""
    chosen, choice = fast.engine.choice_for(x)
    if choice is None:
        return chosen, None, "some blocks have no kernel that can be a part of one launch"
    return choice.plan, choice.one, choice.why


def ways_of_blocks(fast: Any) -> dict[str, int]:
    """How many blocks of a model run by which backend in which way."""
    decisions: Sequence[Any] = fast.engine.decisions(*speed.SIZE)
    return dict(Counter(f"{each.backend} {each.way}".strip() for each in decisions))


def ffn_ways(variant: str, batch: int, device: torch.device) -> dict[str, dict[str, Any]]:
    """For each bottleneck of a network, milliseconds of every way to run it, and by Triton's kernels.

    By way: "ms" with the fastest tiles, "untuned_ms" with those that come first, and "tiles". A block's are
    the sums of its launches', each timed by itself.
    """
    found = {}
    for name, shape in shapes_of((variant,)).items():
        if shape.kind == "ffn":
            found[name] = _ways_of(shape, batch, device)
    return found


def _ways_of(shape: BlockShape, batch: int, device: torch.device) -> dict[str, Any]:
    block = on_device(random_block(shape, torch.Generator().manual_seed(0)), device)
    dtype = torch.float16
    packed = cuda_parity.kernels().pack(block, dtype, device)
    image = FeatureMap(batch, shape.height, shape.width, shape.sizes["in"], dtype)
    row = {}
    for way, launches in cuda_parity.ways(packed, image).items():
        times = [
            {tile: milliseconds(launch, tile) for tile in launch.tiles if cuda_parity.fits(launch, tile)}
            for launch in launches
        ]
        if all(times):
            best = [min(each, key=each.__getitem__) for each in times]
            row[f"cuda {way}".strip()] = {
                "ms": sum(min(each.values()) for each in times),
                "untuned_ms": sum(next(iter(each.values())) for each in times),
                "tiles": [str(tile) for tile in best],
            }
    row["triton"] = {"ms": _by_triton(block, image, device)}
    return row


def _by_triton(block: blocks.Block, image: FeatureMap, device: torch.device) -> float:
    from effv2_kernels.triton import kernels

    engine = Engine(blocks.Network((block,), ("",)), kernels, image.dtype, device, cuda_graph=False)
    x = torch.randn(image.images, image.channels, image.height, image.width, device=device)
    engine.run(x.to(image.dtype).contiguous(memory_format=torch.channels_last))
    launches = engine.block_launches(image.height, image.width)
    return sum(milliseconds(launch, tile) for of_block in launches for launch, tile, *_ in of_block)
