"""What the launches of a network do on a GPU, counted by the emulator of thread blocks, for each image.

    python bench/cuda/counts.py MODULES [--variant s0] [--batch 1 32] [--dtype fp16] [--places 3]

MODULES: the folder of the emulated module. A pass of shared memory serves a warp's access, or as much of it
as has no two words in one bank; passes above accesses are what conflicts cost. --places: so many of the
places in the source that cause most of these are named, of launches with more than 1.1 passes for an access.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from emulated import load_emulated

# Enough that tiles go from one image into the next; a launch for more of them does the same for each.
_COUNTED = 2

# Passes for an access, above which places are named.
_NAMED_FROM = 1.1

_COLUMNS = ("blocks", "barriers", "mmas", "matrices", "copies", "shared_accesses", "shared_passes")


@dataclass
class Row:
    """A kind of launch: what those that are alike do together, for each image."""

    name: str
    times: int = 0
    counts: dict[str, float] = field(default_factory=dict)
    places: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def conflicts(self) -> float:
        accesses = self.counts["shared_accesses"]
        return self.counts["shared_passes"] / accesses if accesses else 1.0


def plan_of(variant: str, batch: int, dtype: torch.dtype, size: int) -> Any:
    """Weights are zeros: they change no count."""
    from effv2_kernels import create_model, sources
    from effv2_kernels.cuda import kernels
    from effv2_kernels.gpu.engine import Engine

    network = sources.read(create_model(f"efficientformerv2_{variant}", img_size=size))
    engine = Engine(network, kernels, dtype, torch.device("cpu"))
    return engine.plan_for(torch.zeros(batch, 3, size, size, dtype=dtype))[1]


def name_of(launch: Any) -> str:
    """Its kind, sizes and tile; launches of one name do the same."""
    a = launch.arguments
    kind = f"ffn {a['part']}" if launch.kind == "ffn" else launch.kind
    kind = f"product of {a['source']}" if launch.kind == "product" else kind
    widths = [a[name] for name in ("channels", "u_channels", "hidden", "outputs") if a.get(name)]
    size = f"{launch.output.height}x{launch.output.width}"
    return " ".join([kind, "-".join(map(str, widths)), size, f"({launch.tiles[0]})"]).replace("  ", " ")


def count(cuda: Any, plan: Any, batch: int) -> list[Row]:
    rows: dict[str, Row] = {}
    images = min(batch, _COUNTED)
    for launch in plan.launches:
        row = rows.setdefault(name_of(launch), Row(name_of(launch)))
        row.times += 1
        if row.counts:
            continue
        some = replace(launch, arguments={**launch.arguments, "images": images}, _steps={})
        memory = {m: torch.zeros(m.reach, dtype=m.dtype) for m in launch.maps}
        cuda.configure(count_passes=True, resident=4)
        cuda.reset_counts()
        some.run(launch.tiles[0], memory)
        row.counts = {name: value / images for name, value in cuda.counts().items()}
        row.places = cuda.passes_by_place()
    return list(rows.values())


def show(rows: list[Row], places: int) -> None:
    def line(name: str, times: object, counts: Iterable[object], conflicts: object) -> None:
        print(f"{name:72}{times:>6}" + "".join(f"{c:>10}" for c in counts) + f"{conflicts:>11}")

    line("", "times", (c.removeprefix("shared_") for c in _COLUMNS), "conflicts")
    total: Counter[str] = Counter()
    for row in rows:
        line(row.name, row.times, (round(row.counts[c]) for c in _COLUMNS), f"{row.conflicts:.2f}")
        total.update({c: row.times * row.counts[c] for c in _COLUMNS})
        if row.conflicts > _NAMED_FROM:
            show_places(row, places)
    conflicts = total["shared_passes"] / total["shared_accesses"]
    line("all", "", (round(total[c]) for c in _COLUMNS), f"{conflicts:.2f}")


def show_places(row: Row, most: int) -> None:
    above = {place: passes - accesses for place, (accesses, passes) in row.places.items()}
    for place in sorted(above, key=above.__getitem__, reverse=True)[:most]:
        accesses, passes = row.places[place]
        share = above[place] / sum(above.values())
        if share:
            print(f"{'':6}{place}: {passes / accesses:.2f}, {share:.0%} of its conflicts")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("modules", type=Path)
    parser.add_argument("--variant", default="s0")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--dtype", choices=("fp16", "bf16"), default="fp16")
    parser.add_argument("--places", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    load_emulated(args.modules)
    from effv2_kernels import _cuda as cuda

    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[args.dtype]
    for batch in args.batch:
        print(f"\n{args.variant} at {args.size}, {args.dtype}, batch {batch}; for each image and launch")
        show(count(cuda, plan_of(args.variant, batch, dtype, args.size), batch), args.places)


if __name__ == "__main__":
    main()
