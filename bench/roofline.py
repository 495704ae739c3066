"""Measure every block of the networks, and draw it below the roofs of the machine: peak and memory.

python bench/roofline.py [--models s0,mobilenetv2_100] [--batch 1] [--threads 1] [--json build/roofline.json]
python bench/roofline.py --from build/roofline.json     # draws what was measured before

A dot is one block: its multiply-adds for each byte that it must move (weights, input and output, each once),
and the GFLOP/s that it reached, two operations for a multiply-add. The roofs are measured in the same run:
multiply-adds in registers, and a copy of memory too large for any cache.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

import effv2_kernels
from effv2_kernels import cpu
from effv2_kernels.benchmarking.targets import EFFICIENTFORMERS
from effv2_kernels.families import short, variant_named
from effv2_kernels.shapes import randomise

COPIED_BYTES = 256 << 20  # of the memory that is read; as many are written
PIECE_BYTES = 4 << 20
PEAK_MILLISECONDS = 2.0
PEAK_TRIES = 10
REPEATS = 8  # of each network in each round, of which the median counts


@dataclass(frozen=True)
class Point:
    """One block of one network."""

    block: str  # its kind
    source: str
    input: tuple[int, ...]  # (channels, height, width)
    intensity: float  # multiply-adds for each byte of weights, input and output
    gflops: float  # reached


@dataclass(frozen=True)
class Panel:
    """One network."""

    model: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Roofline:
    """Everything that the picture shows."""

    cpu: str
    isa: str
    dtype: str
    threads: int
    batch: int
    size: int
    peak_gflops: float
    gbytes: float  # GB/s of a copy, read and written
    panels: tuple[Panel, ...]

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Roofline:
        """The inverse of ``asdict``."""
        panels = []
        for panel in data["panels"]:
            points = tuple(Point(**point | {"input": tuple(point["input"])}) for point in panel["points"])
            panels.append(Panel(**panel | {"points": points}))
        return cls(**data | {"panels": tuple(panels)})

    def roof(self, intensity: float) -> float:
        """GFLOP/s that the machine allows where nothing stays in a cache."""
        return min(self.peak_gflops, 2 * self.gbytes * intensity)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", default=",".join(EFFICIENTFORMERS), help="e.g. s0,l or in full")
    parser.add_argument("--batch", type=int, default=1, metavar="N")
    parser.add_argument("--threads", type=int, default=1, metavar="N")
    parser.add_argument("--size", type=int, default=224, metavar="PIXELS", help="of the square images")
    parser.add_argument("--rounds", type=int, default=8, metavar="N", help="of which the best counts")
    parser.add_argument("--cpu", metavar="NAME", help="for the caption, where the system hides the model")
    parser.add_argument("--json", metavar="FILE", help="also write what was measured")
    parser.add_argument("--from", dest="measured", metavar="FILE", help="draw this file of --json instead")
    parser.add_argument("--svg", default="docs/roofline.svg", type=Path)
    args = parser.parse_args()
    if args.measured is not None:
        found = Roofline.from_json(json.loads(Path(args.measured).read_text(encoding="utf-8")))
    else:
        models = [variant_named(name) for name in args.models.split(",")]
        found = measure(models, args.batch, args.threads, args.size, args.rounds)
    if args.cpu is not None:
        found = replace(found, cpu=args.cpu)
    if args.json is not None:
        Path(args.json).write_text(json.dumps(asdict(found), indent=1) + "\n", encoding="utf-8")
    draw(found, args.svg)
    print(f"{caption(found)}\nwrote {args.svg}")


def measure(models: Sequence[str], batch: int, threads: int, size: int, rounds: int) -> Roofline:
    """Profile networks with random weights in turns, and the machine in every round.

    Of each block the best round counts, and of the machine as well, since others may be using it.
    """
    ready: list[Any] = []
    for name in models:
        torch.manual_seed(0)
        model = effv2_kernels.create_model(name, img_size=size)
        randomise(model)
        ready.append(effv2_kernels.optimize(model, threads=threads))
    images = torch.randn(batch, 3, size, size)
    copies, peaks, profiles = [], [], []
    for _ in range(rounds):
        copies.append(copy_gbytes(threads))
        peaks.append(peak_gflops(ready[0].choice.isa, threads))
        profiles.append([effv2_kernels.profile(fast, images, repeats=REPEATS) for fast in ready])
    panels = []
    for name, fast, found in zip(models, ready, zip(*profiles, strict=True), strict=True):
        points = []
        explained = effv2_kernels.explain(fast, size).rows
        for own, timed in zip(explained, zip(*(p.rows for p in found), strict=True), strict=True):
            elements = batch * (math.prod(own.input) + math.prod(own.output))
            moved = own.bytes + elements * images.element_size()
            intensity = own.gflop * batch * 1e9 / 2 / moved
            points.append(Point(own.block, own.source, own.input, intensity, max(t.gflops for t in timed)))
        panels.append(Panel(short(name), tuple(points)))
    return Roofline(
        cpu=cpu.native().cpu_name(),
        isa=found[0].isa,
        dtype=found[0].dtype,
        threads=threads,
        batch=batch,
        size=size,
        peak_gflops=max(peaks),
        gbytes=max(copies),
        panels=tuple(panels),
    )


def copy_gbytes(threads: int) -> float:
    """GB/s, read and written, of a copy that no cache holds: the median over its pieces."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        source, target = (torch.ones(COPIED_BYTES, dtype=torch.uint8).split(PIECE_BYTES) for _ in range(2))
        seconds = []
        for from_, to in zip(source, target, strict=True):
            start = time.perf_counter()
            to.copy_(from_)
            seconds.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    return 2e-9 * PIECE_BYTES / statistics.median(seconds)


def peak_gflops(isa: str, threads: int) -> float:
    """GFLOP/s of multiply-adds in registers: the best of short tries, since long ones are interrupted."""
    return max(cpu.native().measure_peak(isa, threads, PEAK_MILLISECONDS) for _ in range(PEAK_TRIES))


def caption(found: Roofline) -> str:
    """Machine, run and roofs, on one line."""
    threads = "1 thread" if found.threads == 1 else f"{found.threads} threads"
    return (
        f"{found.cpu}, ISA {found.isa}, {found.dtype}, {threads}, batch {found.batch}, "
        f"{found.size}x{found.size}: peak {found.peak_gflops:.0f} GFLOP/s, copy {found.gbytes:.0f} GB/s"
    )


def draw(found: Roofline, path: Path) -> None:
    """One panel for each model; colour and shape of a dot say the kind of its block."""
    from bench import drawing  # measuring needs no matplotlib

    colours = (
        drawing.SKY,
        drawing.BLUE,
        drawing.RED,
        drawing.GREEN,
        drawing.ORANGE,
        drawing.PINK,
        drawing.GREY,
    )
    points = [point for panel in found.panels for point in panel.points]
    kinds = list(dict.fromkeys(point.block for point in points))
    columns = min(2, len(found.panels))
    figure, axes = drawing.panels(len(found.panels), columns)
    low, high = (edge([p.intensity for p in points]) for edge in (min, max))
    low, high = low / 1.5, high * 2.4
    line = [low * (high / low) ** (i / 200) for i in range(201)]
    for i, (of, panel) in enumerate(zip(found.panels, axes, strict=True)):
        panel.plot(line, [found.roof(x) for x in line], color="black", linewidth=1.0, zorder=1)
        for number, kind in enumerate(kinds):
            dots = [p for p in of.points if p.block == kind]
            panel.scatter(
                [p.intensity for p in dots],
                [p.gflops for p in dots],
                s=28,
                color=colours[number % len(colours)],
                marker="osD^vPX*<>"[number % 10],
                edgecolors="white",
                linewidths=0.5,
                label=kind.replace("_", " "),
                zorder=2,
            )
        _name_maps(of, panel)
        panel.set_xscale("log")
        panel.set_xlim(low, high)
        panel.set_ylim(0, found.peak_gflops * 1.12)
        panel.xaxis.set_major_formatter("{x:g}")
        panel.grid(axis="y", color="#dddddd", linewidth=0.6)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_title(of.model, fontsize=10)
        ridge = found.peak_gflops / 2 / found.gbytes
        panel.text(
            ridge * 1.1, found.peak_gflops * 1.02, f"peak, {found.peak_gflops:.0f} GFLOP/s", fontsize=8
        )
        memory = f"memory, {found.gbytes:.0f} GB/s"
        panel.text(ridge * 0.45, found.peak_gflops * 0.5, memory, fontsize=8, ha="right")
        if i % columns == 0:
            panel.set_ylabel("GFLOP/s")
        if i >= len(found.panels) - columns:
            panel.set_xlabel("multiply-adds per byte of weights, input and output")
    drawing.save(figure, axes[0], caption(found), path)


def _name_maps(of: Panel, panel: Any) -> None:
    """Write the size of the map beside the dots of the most frequent kind of block."""
    most = statistics.mode(point.block for point in of.points)
    by_map: dict[str, list[Point]] = {}
    for point in of.points:
        if point.block == most:
            by_map.setdefault("x".join(map(str, point.input[1:])), []).append(point)
    middle = statistics.median(statistics.mean(p.gflops for p in points) for points in by_map.values())
    leftmost, rightmost = (edge(by_map, key=lambda name: by_map[name][0].intensity) for edge in (min, max))
    for name, points in by_map.items():
        low, high = (edge(points, key=lambda p: p.gflops) for edge in (min, max))
        if name == leftmost:
            at, offset, side = high, (-6, 0), {"ha": "right", "va": "center"}
        elif name == rightmost:
            at, offset, side = high, (6, 0), {"ha": "left", "va": "center"}
        elif statistics.mean(p.gflops for p in points) >= middle:
            at, offset, side = high, (0, 6), {"ha": "center", "va": "bottom"}
        else:
            at, offset, side = low, (0, -6), {"ha": "center", "va": "top"}
        where = (at.intensity, at.gflops)
        panel.annotate(name, where, xytext=offset, textcoords="offset points", fontsize=7, **side)


if __name__ == "__main__":
    main()
