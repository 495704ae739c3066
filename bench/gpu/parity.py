"""Blocks and networks against float64 on the same device: relative L2 over the output.

The kernels write into memory that is NaN in every dtype, sums in float32 are exact (no TF32), and weights,
biases, BatchNorm statistics and layer scales are random.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import effv2_kernels
import effv2_kernels.ops  # registers torch.ops.effv2
from bench.gpu.models import build, shapes_of
from effv2_kernels import blocks
from effv2_kernels.backends import TORCH_DTYPES
from effv2_kernels.declaration import assemble
from effv2_kernels.gpu import tuning
from effv2_kernels.gpu.engine import Engine
from effv2_kernels.gpu.findings import findings_of
from effv2_kernels.gpu.launch import FeatureMap, Launch
from effv2_kernels.reference import run_block
from effv2_kernels.shapes import BlockShape, random_block, random_input
from effv2_kernels.triton import kernels

BLOCK_BOUNDS = {"fp32": 5e-7, "fp16": 5e-3, "bf16": 5e-3}
NETWORK_BOUNDS = {"fp32": 1e-6, "fp16": 2e-2, "bf16": 2e-2}
DTYPES = ("fp16", "fp32", "bf16")
BLOCK_BATCHES = (1, 3)
# (rows, columns) and batch of the images of networks, the most important first. 9 images are enough for the
# tiles of large batches, 384x384 for attention biases looked up by distance; 191x225 is odd throughout.
MOST_IMPORTANT = (((224, 224), 1), ((224, 224), 32))
FIRST_IMAGES = (((224, 224), 1), ((224, 224), 9))
MORE_IMAGES = (((384, 384), 1), ((160, 256), 2), ((191, 225), 3))


@dataclass(frozen=True)
class Parity:
    """One comparison. size: rows and columns of the input. failure: what is wrong, "" for nothing.

    backend: whose kernels they are.
    """

    what: str
    dtype: str
    batch: int
    size: tuple[int, int]
    bound: float
    error: float | None = None
    failure: str = ""
    backend: str = "triton"

    @property
    def ok(self) -> bool:
        return not self.failure and self.error is not None and self.error <= self.bound

    def row(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self) | {"ok": self.ok}


@dataclass(frozen=True)
class Check:
    """Some comparisons under one key."""

    key: str
    run: Callable[[], Iterator[Parity]]


@dataclass(frozen=True)
class Group:
    """Checks of one dtype. shapes: every block of theirs, with the batches that it is run at."""

    what: str
    checks: list[Check]
    dtype: str = "fp16"
    shapes: Sequence[tuple[BlockShape, Sequence[int]]] = ()

    def prepare(self, device: torch.device) -> None:
        """Compile their kernels in parallel: alone, each check would wait for processes of its own."""
        if device.type == "cuda":
            with suppress(Exception):  # what cannot be planned or compiled says so when it is checked
                tables = findings_of(device).tiles
                tuning.compile_missing(
                    [(each, tables.find(each) or each.tiles[0]) for each in self.launches()]
                )

    def launches(self) -> Iterator[Launch]:
        """All that the checks launch. The tiles depend on the batch."""
        for shape, batches in self.shapes:
            yield from launches_of(shape, self.dtype, batches)


def groups(variants: Sequence[str], device: torch.device) -> list[Group]:
    """Everything to check, the cheap and important first. variants: "s0" to "l"."""
    shapes = shapes_of(variants)
    found = [_group_of_networks(variants[:1], DTYPES[0], MOST_IMPORTANT, device)]
    for dtype in DTYPES:
        found.append(_group_of_blocks(shapes, dtype, device))
        found.append(_group_of_networks(variants, dtype, FIRST_IMAGES, device))
    found += [_group_of_networks(variants, dtype, MORE_IMAGES, device) for dtype in DTYPES]
    first = {check.key for check in found[0].checks}
    for group in found[1:]:
        group.checks[:] = [check for check in group.checks if check.key not in first]
    return found


def _group_of_blocks(shapes: dict[str, BlockShape], dtype: str, device: torch.device) -> Group:
    checks = [
        Check(f"{name} {dtype} batch {batch}", partial(check_block, name, shape, dtype, batch, device))
        for batch in BLOCK_BATCHES
        for name, shape in shapes.items()
    ]
    found = [(shape, BLOCK_BATCHES) for shape in shapes.values()]
    return Group(f"blocks in {dtype}", checks, dtype, found)


def _group_of_networks(
    variants: Sequence[str],
    dtype: str,
    images: Sequence[tuple[tuple[int, int], int]],
    device: torch.device,
) -> Group:
    checks = [
        Check(
            f"{variant} {dtype} {size[0]}x{size[1]} batch {batch}",
            partial(_check_variant, variant, dtype, batch, size, device),
        )
        for size, batch in images
        for variant in variants
    ]
    batches: dict[tuple[int, int], list[int]] = {}
    for size, batch in images:
        batches.setdefault(size, []).append(batch)
    sizes = ", ".join(f"{rows}x{columns}" for rows, columns in batches)

    found = [(shape, batches[size]) for size in batches for shape in shapes_of(variants, size).values()]
    return Group(f"networks in {dtype} at {sizes}", checks, dtype, found)


def _check_variant(
    variant: str, dtype: str, batch: int, size: tuple[int, int], device: torch.device
) -> Iterator[Parity]:
    yield from check_network(variant, build(variant, size, device), dtype, batch, size, device)


def check_block(
    name: str, shape: BlockShape, dtype: str, batch: int, device: torch.device
) -> Iterator[Parity]:
    """One block on random numbers; on a GPU also as ``torch.ops.effv2.<kind>``, which must give its bits."""
    g = torch.Generator().manual_seed(batch)
    block = on_device(random_block(shape, g), device)
    x = random_input(shape, g, batch).to(device, TORCH_DTYPES[dtype])
    outputs: list[Tensor] = []

    def run() -> Tensor:
        engine = Engine(blocks.Network((block,), ("",)), kernels, x.dtype, device, cuda_graph=False)
        with poisoned_memory():
            outputs.extend(engine.run(x))
        return outputs[0]

    def as_op() -> Tensor:
        with poisoned_memory():
            y: Tensor = getattr(torch.ops.effv2, block.kind)(x, *block.values().values())
        return y

    asked = Parity(name, dtype, batch, (shape.height, shape.width), BLOCK_BOUNDS[dtype])
    yield compare(asked, run, lambda: run_block(block, x.double()))
    if outputs and device.type == "cuda":
        as_exact = replace(asked, what=f"{name}, as an op", bound=0.0)
        yield compare(as_exact, as_op, lambda: outputs[0].double())


def check_network(
    name: str,
    model: nn.Module,
    dtype: str,
    batch: int,
    size: tuple[int, int],
    device: torch.device,
    *,
    backend: str = "triton",
) -> Iterator[Parity]:
    """A whole network: kernel by kernel, then as a captured graph, which must give the same bits.

    model: fp32, on ``device``; it becomes a float64 model. On a GPU a third call must not wait for the GPU.
    """
    g = torch.Generator(device).manual_seed(batch)
    x = torch.randn(batch, 3, *size, generator=g, device=device).to(TORCH_DTYPES[dtype])
    made: list[nn.Module] = []
    outputs: list[Tensor] = []

    def run() -> Tensor:
        made.append(effv2_kernels.optimize(model, dtype=dtype, backend=backend))
        with poisoned_memory():
            outputs.append(made[0](x))
        return outputs[0]

    def again() -> Tensor:
        with poisoned_memory():
            made[0](x)
            with no_waiting(device):
                y: Tensor = made[0](x)
        return y

    asked = Parity(name, dtype, batch, size, NETWORK_BOUNDS[dtype], backend=backend)
    yield compare(asked, run, lambda: model.double()(x.double()))
    if outputs:
        as_exact = replace(asked, what=f"{name}, graph", bound=0.0)
        yield compare(as_exact, again, lambda: outputs[0].double())


def compare(asked: Parity, run: Callable[[], Tensor], exact: Callable[[], Tensor]) -> Parity:
    """``run`` beside ``exact``, which runs second. What either raises is the failure of this comparison."""
    try:
        with torch.no_grad(), exact_products():
            output, expected = run(), exact()
            return _compared(asked, output, expected)
    except Exception as failure:  # one that fails must not cost the figures of the others
        return replace(asked, failure=f"{type(failure).__name__}: {failure}")


def _compared(asked: Parity, output: Tensor, expected: Tensor) -> Parity:
    if output.shape != expected.shape or output.dtype != TORCH_DTYPES[asked.dtype]:
        made = f"{tuple(output.shape)} {output.dtype}"
        return replace(asked, failure=f"made {made} where the reference has {tuple(expected.shape)}")
    bad = int((~output.isfinite()).sum())
    if bad:
        return replace(asked, failure=f"{bad} of {output.numel()} values are not finite")
    difference = output.double() - expected
    error = float(difference.norm() / expected.norm())
    if error <= asked.bound:
        return replace(asked, error=error)
    worst = tuple(int(i) for i in torch.unravel_index(difference.abs().argmax(), expected.shape))
    return replace(
        asked,
        error=error,
        failure=f"relative L2 {error:.2e}, allowed are {asked.bound:.0e}; worst at {worst}: "
        f"{float(output[worst]):.6g} where the reference has {float(expected[worst]):.6g}",
    )


def on_device(block: blocks.Block, device: torch.device) -> blocks.Block:
    """The same block with its tensors on a device."""
    moved = {name: t.to(device) for name, t in block.tensors().items()}
    return assemble(type(block), {**block.values(), **moved})


def launches_of(shape: BlockShape, dtype: str, batches: Iterable[int]) -> Iterator[Launch]:
    """What a block of some shape launches for each of some batches, with weights on the CPU."""
    packed = kernels.pack(random_block(shape, torch.Generator().manual_seed(0)), TORCH_DTYPES[dtype], "cpu")
    for batch in batches:
        x = FeatureMap(batch, shape.height, shape.width, shape.sizes["in"], TORCH_DTYPES[dtype])
        yield from packed.plan(x, "ieee")


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Every ``torch.empty`` is NaN, or bytes of 0xFF, which are NaN in every dtype; in graphs as well."""
    before = torch.are_deterministic_algorithms_enabled()
    settings: Any = torch.utils.deterministic
    filled = settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    settings.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        settings.fill_uninitialized_memory = filled


@contextmanager
def exact_products() -> Iterator[None]:
    """No TF32, whatever an environment variable says."""
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


@contextmanager
def no_waiting(device: torch.device) -> Iterator[None]:
    """What makes PyTorch wait for the GPU raises."""
    if device.type != "cuda":
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
