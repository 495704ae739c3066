"""The CUDA kernels against float64, as in ``parity``: every way of a block in all its tiles, and networks.

A network is run by single launches, by a captured graph of them, and in one launch; a graph must give the
bits of the launches, and so must the one launch of those with its tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any, cast

import torch
from torch import Tensor

from bench.gpu.models import build, shapes_of
from bench.gpu.parity import (
    BLOCK_BATCHES,
    BLOCK_BOUNDS,
    NETWORK_BOUNDS,
    Check,
    Group,
    Parity,
    check_network,
    compare,
    no_waiting,
    on_device,
    poisoned_memory,
)
from bench.gpu.targets import MODELS, VARIANTS
from effv2_kernels import blocks, shapes, sources
from effv2_kernels.backends import TORCH_DTYPES
from effv2_kernels.gpu.graph import Graph
from effv2_kernels.gpu.kernels import Kernels
from effv2_kernels.gpu.launch import FeatureMap
from effv2_kernels.gpu.plan import Plan
from effv2_kernels.reference import run_block
from effv2_kernels.shapes import BlockShape, random_block, random_input

DTYPES = ("fp16", "bf16")
SIZE = (224, 224)
BATCHES = (1, 8, 32)
BACKEND = "cuda"
# Blocks of threads of the one launch where there is no GPU to ask.
_EMULATED_BLOCKS = 4


def kernels() -> Kernels:
    """Those of the compiled module, which need not be there when this is imported."""
    return cast(Kernels, import_module("effv2_kernels.cuda.kernels"))


def groups(variants: Sequence[str], device: torch.device) -> list[Group]:
    """Everything to check, the most important first.

    variants: "s0" to "l"; where it is all of them, the other family's as well.
    """
    checked = MODELS if tuple(variants) == VARIANTS else tuple(variants)
    found = [_networks(checked[:1], DTYPES[0], device)]
    for dtype in DTYPES:
        found += [
            _blocks(checked, dtype, device),
            _networks(checked, dtype, device),
            _as_called(checked, dtype, device),
        ]
    first = {check.key for check in found[0].checks}
    for group in found[1:]:
        group.checks[:] = [check for check in group.checks if check.key not in first]
    return found


def _blocks(variants: Sequence[str], dtype: str, device: torch.device) -> Group:
    checks = [
        Check(f"cuda {name} {dtype} batch {batch}", partial(check_block, name, shape, dtype, batch, device))
        for batch in BLOCK_BATCHES
        for name, shape in shapes_of(variants).items()
    ]
    return Group(f"CUDA blocks in {dtype}", checks, dtype)


def _networks(variants: Sequence[str], dtype: str, device: torch.device) -> Group:
    checks = [
        Check(f"cuda {variant} {dtype} batch {batch}", partial(_check_variant, variant, dtype, batch, device))
        for variant in variants
        for batch in BATCHES
    ]
    return Group(f"CUDA networks in {dtype}", checks, dtype)


def _as_called(variants: Sequence[str], dtype: str, device: torch.device) -> Group:
    """As ``optimize`` returns them, which chooses how to launch: the same launches, so few of these."""
    few = [(variant, 1) for variant in variants] + [(variants[0], batch) for batch in BATCHES[1:]]

    def run(variant: str, batch: int) -> Iterator[Parity]:
        model = build(variant, SIZE, device)
        yield from check_network(f"{variant}, by cuda", model, dtype, batch, SIZE, device, backend=BACKEND)

    checks = [Check(f"cuda optimize {v} {dtype} batch {b}", partial(run, v, b)) for v, b in few]
    return Group(f"optimised for cuda in {dtype}", checks, dtype)


def check_block(
    name: str, shape: BlockShape, dtype: str, batch: int, device: torch.device
) -> Iterator[Parity]:
    """One block on random numbers: a comparison for each way to run it, of the worst of its tiles.

    All tiles of each launch that fit are run, beside the first ones of the others.
    """
    g = torch.Generator().manual_seed(batch)
    block = on_device(random_block(shape, g), device)
    x = random_input(shape, g, batch).to(device, TORCH_DTYPES[dtype])
    x = x.contiguous(memory_format=torch.channels_last)
    image = FeatureMap(batch, shape.height, shape.width, shape.sizes["in"], x.dtype)
    exact: list[Tensor] = []

    def reference() -> Tensor:
        if not exact:
            exact.append(run_block(block, x.double()))
        return exact[0]

    asked = Parity(name, dtype, batch, (shape.height, shape.width), BLOCK_BOUNDS[dtype], backend=BACKEND)
    try:
        packed = kernels().pack(block, x.dtype, device)
        found = ways(packed, image)
    except Exception as failure:  # one that fails must not cost the figures of the others
        yield replace(asked, failure=f"{type(failure).__name__}: {failure}")
        return
    for way, launches in found.items():
        yield _worst(replace(asked, what=f"{name}, {way}" if way else name), launches, image, x, reference)


def ways(packed: Any, image: FeatureMap) -> dict[str, Sequence[Any]]:
    """The launches of every way in which a block can be run, the one that is taken unmeasured first."""
    alternatives = getattr(packed, "alternatives", None)
    if alternatives is None:
        return {"": packed.plan(image, "ieee")}
    return {found.way: found.launches for found in alternatives(image, "ieee") if found.launches}


def _worst(
    asked: Parity, launches: Sequence[Any], image: FeatureMap, x: Tensor, reference: Callable[[], Tensor]
) -> Parity:
    """The comparison with the largest error, or the first that fails, of all tiles."""
    possible = [[tile for tile in launch.tiles if fits(launch, tile)] for launch in launches]
    if not all(possible):
        short = next(launch.name for launch, found in zip(launches, possible, strict=True) if not found)
        return replace(asked, failure=f"no tile of {short} fits this GPU")
    first = [found[0] for found in possible]
    sets = [first]
    for i, found in enumerate(possible):
        sets += [[*first[:i], tile, *first[i + 1 :]] for tile in found[1:]]
    logits = launches[-1].output.height == 1 and reference().dim() == 2
    worst: Parity | None = None
    for tiles in sets:

        def run(tiles: list[Any] = tiles) -> Tensor:
            y = _run(launches, tiles, image, x)
            return y.flatten(1) if logits else y

        row = compare(replace(asked, what=f"{asked.what}, {len(sets)} choices of tiles"), run, reference)
        if not row.ok:
            return replace(row, failure=f"{' | '.join(map(str, tiles))}: {row.failure}")
        if worst is None or (row.error or 0.0) > (worst.error or 0.0):
            worst = row
    assert worst is not None
    return worst


def fits(launch: Any, tile: Any) -> bool:
    """Whether a launch can be made with a tile here; emulators have no limits beside the kernels' own."""
    if launch.interpreted:
        return bool(launch.own_step(tile).extent.tiles)
    return launch.compile(tile) is not None


def _run(launches: Sequence[Any], tiles: Sequence[Any], image: FeatureMap, x: Tensor) -> Tensor:
    with poisoned_memory():
        memory = {m: x.new_empty(m.elements) for launch in launches for m in launch.written}
        memory[image] = x
        for launch, tile in zip(launches, tiles, strict=True):
            launch.run(tile, memory)
    m = launches[-1].output
    return memory[m].view(m.images, m.height, m.width, m.channels).permute(0, 3, 1, 2)


def _check_variant(variant: str, dtype: str, batch: int, device: torch.device) -> Iterator[Parity]:
    model = build(variant, SIZE, device)
    yield from check_launches(variant, sources.read(model), dtype, batch, SIZE, device, model.double())


def check_launches(
    name: str,
    network: blocks.Network,
    dtype: str,
    batch: int,
    size: tuple[int, int],
    device: torch.device,
    exact: Callable[[Tensor], Tensor],
) -> Iterator[Parity]:
    """A network with a head by single launches, captured, and in one launch. exact: it in float64."""
    g = torch.Generator(device).manual_seed(batch)
    x = torch.randn(batch, 3, *size, generator=g, device=device).to(TORCH_DTYPES[dtype])
    asked = Parity(f"{name}, launches", dtype, batch, size, NETWORK_BOUNDS[dtype], backend=BACKEND)
    made: dict[str, Tensor] = {}
    try:
        plan = planned(network, x, device)
        one = one_launch(plan, device)
    except Exception as failure:  # one that fails must not cost the figures of the others
        yield replace(asked, failure=f"{type(failure).__name__}: {failure}")
        return

    def launches(key: str, tiles: Sequence[Any]) -> Tensor:
        before, plan.tiles = plan.tiles, list(tiles)
        with poisoned_memory():
            made[key] = plan.run(x)[0].flatten(1)
        plan.tiles = before
        return made[key]

    yield compare(asked, lambda: launches("single", plan.tiles), lambda: exact(x.double()))
    same = replace(asked, bound=0.0)
    if device.type == "cuda" and "single" in made:

        def graph() -> Tensor:
            with poisoned_memory():
                held = Graph(plan, x)
                held.replay(x)
                with no_waiting(device):
                    return held.replay(x)[0].flatten(1)

        yield compare(replace(same, what=f"{name}, graph"), graph, lambda: made["single"].double())
    control = torch.zeros(one.control_bytes, dtype=torch.uint8, device=device)

    def joined() -> Tensor:
        arena = torch.full((one.bytes,), 0xFF, dtype=torch.uint8, device=device)
        with poisoned_memory():
            made["one"] = one.run(x, arena, control)[0].flatten(1)
        return made["one"]

    yield compare(replace(asked, what=f"{name}, one launch"), joined, lambda: exact(x.double()))
    bits = replace(same, what=f"{name}, one launch beside single ones with its tiles")
    yield compare(bits, lambda: made["one"], lambda: launches("its tiles", one.tiles).double())
    # The counters that one launch leaves must serve the next.
    again = replace(same, what=f"{name}, one launch again")
    first = made.get("one")
    if first is not None:
        yield compare(again, joined, first.double)


def planned(network: blocks.Network, x: Tensor, device: torch.device) -> Plan:
    """The single launches of a network with a head, with its first tiles that fit."""
    n, c, h, w = x.shape
    with torch.inference_mode(False), torch.no_grad():
        packed = [kernels().pack(block, x.dtype, device) for block in network.blocks]
        image = FeatureMap(n, h, w, c, x.dtype, (c * h * w, h * w, w, 1))
        plan = Plan(packed, image, [(len(packed) - 1, None)], "ieee")
    plan.tiles = [next(tile for tile in launch.tiles if fits(launch, tile)) for launch in plan.launches]
    return plan


def one_launch(plan: Plan, device: torch.device) -> Any:
    """The same launches as one, of one block of threads for each multiprocessor."""
    from effv2_kernels.cuda.network import OneLaunch

    count = _EMULATED_BLOCKS
    if device.type == "cuda":
        count = torch.cuda.get_device_properties(device).multi_processor_count
    launches: list[Any] = list(plan.launches)
    with torch.inference_mode(False):
        return OneLaunch(launches, plan.image, plan.outputs, device, count)


# Every kind of block, of which a watched launch does not take long; maps are no multiples of tiles.
SMALL = {
    "ffn": shapes.ffn(16, 32, 9, 7),
    "conv": shapes.conv(16, 24, 9, 7, stride=2),
    "attention": shapes.attention(16, 5, 7),
    "attention with a stride": shapes.attention(16, 7, 5, stride=2),
    "attention_downsample": shapes.attention_downsample(16, 24, 7, 5),
    "head": shapes.head(24, 16, 3, 5),
    "stem": shapes.stem(16, 33, 31),
}


def small(device: torch.device) -> Iterator[Parity]:
    """All kernels once in small launches, and a network of some in one launch."""
    for dtype in DTYPES:
        for name, shape in SMALL.items():
            yield from check_block(name, shape, dtype, 1, device)
    g = torch.Generator().manual_seed(0)
    parts = (
        shapes.stem(16, 33, 31), shapes.ffn(16, 32, 9, 8), shapes.conv(16, 24, 9, 8, stride=2),
        shapes.attention(24, 5, 4), shapes.head(24, 16, 5, 4),
    )  # fmt: skip
    made = tuple(on_device(random_block(part, g), device) for part in parts)
    network = blocks.Network(made, ("",) * len(made))

    def exact(x: Tensor) -> Tensor:
        for block in made:
            x = run_block(block, x)
        return x

    yield from check_launches("small", network, "fp16", 1, (33, 31), device, exact)
