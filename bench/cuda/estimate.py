"""What the CUDA kernels may take on an H100, from counts alone: an estimate, nothing here was measured.

python bench/cuda/estimate.py [--networks s0 ...] [--json FILE] [--page docs/cuda.md]

Kernels run in the emulator of thread blocks (``make test-cuda-emulated`` builds it; EFFV2_TEST_CUDA is its
folder), which counts instructions, products of the tensor cores and tiles. Bytes are those of maps and of
weights, each once.

Batch 256: every launch takes as long as the scarcest of instructions, products and bytes, at rates that other
kernels reach. Batch 1: the tasks of the one launch are dealt to 132 blocks in their order; each takes a time
for flags and first loads, and one for its instructions at the pace of a block that runs alone.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench"))

from emulated import load_emulated  # noqa: E402
from readme import put_between  # noqa: E402

load_emulated(os.environ.get("EFFV2_TEST_CUDA", str(ROOT / "build" / "native" / "emulated_cuda")))

from effv2_kernels import _cuda, create_model, shapes, sources  # noqa: E402
from effv2_kernels.cuda import ffn, kernels  # noqa: E402
from effv2_kernels.cuda.launch import Launch  # noqa: E402
from effv2_kernels.cuda.network import OneLaunch, shape_of  # noqa: E402
from effv2_kernels.gpu.launch import FeatureMap, Tile  # noqa: E402
from effv2_kernels.gpu.plan import Plan  # noqa: E402

MARKS = ("<!-- estimate:begin -->", "<!-- estimate:end -->")
# Times faster than torch.compile(mode="max-autotune"), for one image and for 256.
TARGETS = {"s0": (4, 2), "s1": (4, 2), "s2": (3, 1.8), "l": (2.5, 1.6)}
NETWORKS = ("s0", "s1", "s2", "l")
BATCH = 256
SIZE = 224

# An H100: what it has (NVIDIA H100 Tensor Core GPU Architecture), and what kernels reach of it.
MULTIPROCESSORS = 132
CLOCK = 1.755e9
ISSUES = MULTIPROCESSORS * 4 * CLOCK  # instructions of a warp a second
PRODUCTS = 620e12 / 2 / 2048  # of 16 x 8 x 16 a second, by mma.sync
BYTES = 2.9e12  # a second
# Instructions beside those that the emulator counts: addresses, loops and arithmetic in float.
UNCOUNTED = 1.4
# Of the scarcest rate, what a launch reaches with the others beside it; seconds from one launch to the next.
REACHED = 0.7
LAUNCH = 1.2e-6
# Seconds of a task of the one launch: to see a flag, to load behind it, and to raise the next.
FLAGS, LOADS = 0.9e-6, 0.6e-6
# Cycles from one instruction of a warp to the next where a block runs alone (see triton/gpu.py).
PACE = 2.7
WARPS = 8


@dataclass
class Counted:
    """Of a launch for one image; weights: bytes that a batch reads once."""

    kernel: str
    shape: str
    instructions: float
    products: float
    map_bytes: float
    weight_bytes: float
    tiles: int

    def seconds(self, images: int) -> float:
        scarcest = max(
            images * self.instructions * UNCOUNTED / ISSUES,
            images * self.products / PRODUCTS,
            (images * self.map_bytes + self.weight_bytes) / BYTES,
        )
        return scarcest / REACHED + LAUNCH

    @property
    def task_seconds(self) -> float:
        """Of one of its tiles in the one launch, behind the flags."""
        return LOADS + self.instructions * UNCOUNTED / self.tiles / WARPS * PACE / CLOCK


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--ffn", action="store_true", help="the ways to run a bottleneck beside each other")
    parser.add_argument("--page", type=Path, help="where to put the table between its marks")
    args = parser.parse_args()
    if args.ffn:
        print("\n".join(ffn_table()))
        return 0
    found = {}
    for name in args.networks:
        found[name] = estimate(name)
        print(name, json.dumps({k: v for k, v in found[name].items() if k != "launches"}))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if args.page:
        put_between(args.page, MARKS, table(found))
    return 0


def table(found: dict[str, dict[str, Any]]) -> str:
    lines = [
        "| | instructions of a warp, of an image | MB of maps | 256 images, ms | images/s | one image, ms | "
        "torch.compile, times: target |",
        "| --- | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for name, e in found.items():
        one, many = TARGETS[name]
        lines.append(
            f"| {name.upper()} | {e['instructions'] / 1e6:.1f} M | {e['map_bytes'] / 1e6:.1f} "
            f"| {e['milliseconds_256']:.2f} | {e['images_per_second_256']:,} | {e['milliseconds_1']:.3f} "
            f"| {one} for one image, {many} for 256 |"
        )
    return "\n".join(lines)


def estimate(name: str) -> dict[str, Any]:
    torch.manual_seed(0)
    network = sources.read(create_model(f"efficientformerv2_{name}"))
    with torch.no_grad():
        packed = [kernels.pack(block, torch.float16, "cpu") for block in network.blocks]
    many, few = count(packed, BATCH), count(packed, 1)
    seconds = sum(c.seconds(BATCH) for c in many)
    return {
        "instructions": round(sum(c.instructions for c in many) * UNCOUNTED),
        "products": round(sum(c.products for c in many)),
        "map_bytes": round(sum(c.map_bytes for c in many)),
        "launches_of_one_image": len(few),
        "milliseconds_256": round(seconds * 1e3, 3),
        "images_per_second_256": round(BATCH / seconds),
        "milliseconds_1": round(one_launch(packed, few) * 1e3, 4),
        "launches": [asdict(c) for c in many],
    }


def ffn_table() -> list[str]:
    """S0's bottlenecks for a batch: in one launch, in two at the hidden map, and in two behind its depthwise
    convolution."""
    lines = [
        "| map, channels, hidden | way | instructions of an image | MB of maps | 256 images, us |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for channels, size, hidden in ((32, 56, 128), (48, 28, 192), (96, 14, 384), (176, 7, 704)):
        shape = shapes.ffn(channels, hidden, size, size)
        block = ffn.FFN(shapes.random_block(shape, torch.Generator().manual_seed(0)), torch.float16, "cpu")
        x, many = (FeatureMap(n, size, size, channels, torch.float16) for n in (1, BATCH))
        of_many = {a.way: a.launches for a in block.alternatives(many, "ieee")}
        for way in block.alternatives(x, "ieee"):
            memory: dict[FeatureMap, torch.Tensor] = {}
            pairs = zip(way.launches, of_many[way.way], strict=True)
            counted = [counted_launch(one, large.tiles[0], memory) for one, large in pairs]
            lines.append(
                f"| {size}x{size}, {channels}, {hidden} | {way.way} "
                f"| {sum(c.instructions for c in counted) * UNCOUNTED / 1e3:.0f} k "
                f"| {sum(c.map_bytes for c in counted) / 1e6:.2f} "
                f"| {sum(c.seconds(BATCH) for c in counted) * 1e6:.0f} |"
            )
    return lines


def planned(packed: Any, batch: int) -> Plan:
    image = FeatureMap(batch, SIZE, SIZE, 3, torch.float16, (3 * SIZE * SIZE, SIZE * SIZE, SIZE, 1))
    return Plan(packed, image, [(len(packed) - 1, None)], "ieee")


def count(packed: Any, batch: int) -> list[Counted]:
    """What one image costs, by the launches and with the tiles that a batch has."""
    large = planned(packed, batch)
    many = ffn.MANY
    ffn.MANY = many // batch
    small = planned(packed, 1)
    ffn.MANY = many
    memory = {small.image: torch.zeros(small.image.elements).half()}
    found = []
    for launch, of_batch in zip(small.launches, large.launches, strict=True):
        assert isinstance(launch, Launch)
        assert launch.name == of_batch.name
        found.append(counted_launch(launch, of_batch.tiles[0] if batch > 1 else shape_of(launch), memory))
    return found


def counted_launch(launch: Launch, tile: Tile, memory: dict[FeatureMap, torch.Tensor]) -> Counted:
    for m in launch.maps:
        memory.setdefault(m, torch.zeros(m.elements, dtype=m.dtype))
    _cuda.reset_counts()
    launch.run(tile, memory)
    counts = _cuda.counts()
    maps = sum(m.bytes for m in launch.maps)
    name = " ".join(str(launch.arguments.get(f, "")) for f in ("source", "part")).strip()
    return Counted(
        f"{launch.kind} {name}".strip(), str(tile), counts["operations"] / 32, counts["mmas"], maps,
        launch.bytes - maps, launch.own_step(tile).extent.tiles,
    )  # fmt: skip


def one_launch(packed: Any, counted: list[Counted]) -> float:
    """Seconds until the last task is done, if tasks are dealt to blocks in their order."""
    plan = planned(packed, 1)
    one = OneLaunch(plan.launches, plan.image, plan.outputs, torch.device("cpu"), MULTIPROCESSORS)
    raised: dict[int, float] = {}
    free = [0.0] * MULTIPROCESSORS
    for task in one.tasks:
        begin = heapq.heappop(free)
        waits = [raised.get(flag, 0.0) for flags in task.waits for flag in flags]
        end = max([begin, *(at + FLAGS for at in waits)]) + counted[task.launch].task_seconds
        for flag in task.raises:
            raised[flag] = max(raised.get(flag, 0.0), end)
        heapq.heappush(free, end)
    return max(free)


if __name__ == "__main__":
    sys.exit(main())
