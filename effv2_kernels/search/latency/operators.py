"""Where the time of networks goes, by the kind of their blocks."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from effv2_kernels.families.efficientformer_v2.architecture import Architecture
from effv2_kernels.search.latency.fit import Reading, at_one_speed
from effv2_kernels.search.latency.kept import Clock
from effv2_kernels.search.latency.measuring import read
from effv2_kernels.search.panel import panel

# In the order in which they are drawn, with names that people know and colours that they can tell apart.
KINDS = {
    "stem": ("stem", "#999999"),
    "conv": ("downsampling convolution", "#56B4E9"),
    "attention_downsample": ("attention downsample", "#0072B2"),
    "ffn": ("FFN with depthwise convolution", "#E69F00"),
    "attention": ("talking-head attention", "#D55E00"),
    "head": ("head", "#009E73"),
}


def times_by_kind(
    networks: Mapping[str, Architecture], clock: Clock, rounds: int = 25
) -> dict[str, dict[str, float]]:
    """By network and kind of block, in the clock's unit: medians of rounds.

    Networks take turns, in another order each round, between two runs of the first one, which say how slow
    the machine is at the moment.
    """
    runners = {name: clock.runner(architecture) for name, architecture in networks.items()}
    reference = next(iter(runners.values()))
    turns: list[str] = []
    readings: list[Reading] = []
    for number in range(rounds):
        order = list(networks)
        random.Random(number).shuffle(order)
        for name in order:
            turns.append(name)
            readings.append(read(networks[name], runners[name], reference))
    times: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in networks}
    for name, reading in zip(turns, at_one_speed(readings)[0], strict=True):
        of_kind: dict[str, float] = defaultdict(float)
        for shape, time in zip(clock.task.shapes(networks[name]), reading.blocks, strict=True):
            of_kind[shape.kind] += time
        for kind, time in of_kind.items():
            times[name][kind].append(time)
    return {name: {kind: median(of) for kind, of in by_kind.items()} for name, by_kind in times.items()}


def draw_by_kind(found: Mapping[str, Mapping[str, float]], unit: str, path: Path) -> None:
    """A bar for each network, of its blocks by kind. path: .svg or .png. Raises as ``panel``."""
    with panel(path, 7.0, 0.6 * len(found) + 1.4) as axes:
        names: Sequence[str] = list(found)
        left = [0.0] * len(names)
        for kind, (label, colour) in KINDS.items():
            widths = [found[name].get(kind, 0.0) for name in names]
            axes.barh(names, widths, left=left, color=colour, label=label, height=0.7)
            left = [a + b for a, b in zip(left, widths, strict=True)]
        axes.invert_yaxis()
        axes.set_xlabel(f"{unit}, one call")
        axes.legend(fontsize="small", ncols=2, loc="upper center", bbox_to_anchor=(0.45, -0.25))
