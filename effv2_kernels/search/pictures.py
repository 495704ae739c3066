"""Pictures of a search, as PNG or SVG by the name of the file: the front, the way, and what was found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from effv2_kernels import fields
from effv2_kernels.families.efficientformer_v2.architecture import Architecture
from effv2_kernels.search.panel import panel
from effv2_kernels.search.search import Found
from effv2_kernels.search.step import Candidate

_COLOURS = {"ffn": "#9ecae1", "attention": "#fdae6b", "other": "#d9d9d9"}


@dataclass(frozen=True)
class Points:
    """What a search met, and what it found: pairs of a metric and an accuracy from 0 to 1."""

    met: Sequence[tuple[float, float]]
    best: tuple[float, float]


def pareto(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those that nothing beats: none is at least as accurate at no more of the metric. By the metric."""
    front: list[tuple[float, float]] = []
    for value, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or accuracy > front[-1][1]:
            front.append((value, accuracy))
    return front


def draw_front(searches: Mapping[str, Found], metric: str, path: Path, *, unit: str = "") -> None:
    """Accuracy against a metric: all subnets of searches, by their names; the front; stars where they ended.

    Raises UnavailableError without matplotlib, SearchError where the file cannot be written.
    """
    points = {
        name: Points([_point(one, metric) for one in found.candidates()], _point(found.best, metric))
        for name, found in searches.items()
    }
    draw_points(points, metric, path, unit=unit)


def draw_points(searches: Mapping[str, Points], metric: str, path: Path, *, unit: str = "") -> None:
    """The same of points that are known already. Raises as ``draw_front``."""
    with panel(path, 6.4, 4.2) as axes:
        for number, (name, points) in enumerate(searches.items()):
            colour, label = f"C{number}", f"{name}: {len(points.met)}"
            axes.scatter(*_axes(points.met), s=12, alpha=0.5, linewidths=0, color=colour, label=label)
            axes.scatter(*_axes([points.best]), s=90, marker="*", color=colour, edgecolors="black", zorder=3)
        front = pareto(point for points in searches.values() for point in points.met)
        axes.plot(*_axes(front), color="black", linewidth=1, drawstyle="steps-post", label="front")
        axes.set_xlabel(_label(metric, unit))
        axes.set_ylabel("top-1 on held-out images, %")
        axes.legend(frameon=False, fontsize=8, loc="lower right")


def draw_path(found: Found, metric: str, path: Path, *, unit: str = "") -> None:
    """The way of a search: what it considered at each step, and where it stood. Raises as ``draw_front``."""
    with panel(path, 6.4, 4.2) as axes:
        axes.scatter(
            *_axes([_point(o.candidate, metric) for s in found.steps for o in s.options]),
            s=8,
            color="#bbbbbb",
            linewidths=0,
            label="considered",
        )
        stood = [step.chosen for step in found.steps]
        axes.plot(
            *_axes([_point(one, metric) for one in stood]),
            marker="o",
            markersize=3,
            linewidth=1,
            label="taken",
        )
        for end, text in ((stood[0], "begin"), (stood[-1], "found")):
            axes.annotate(text, (end.metrics[metric], 100 * end.accuracy), fontsize=8)
        axes.set_xlabel(_label(metric, unit))
        axes.set_ylabel("top-1 on held-out images, %")
        axes.legend(frameon=False, fontsize=8, loc="lower right")


def draw_network(architecture: Architecture, path: Path) -> None:
    """A row for each stage, a box for each block, as high as its FFN is wide. Raises as ``draw_front``."""
    ratios, attention = architecture.block_ratios(), (0, 0, *architecture.late_attention())
    deepest = max(1, *map(len, ratios))
    widest = max(w * r for w, stage in zip(architecture.widths, ratios, strict=True) for r in (1, *stage))
    with panel(path, 2.4 + 0.75 * deepest, 4.4) as axes:
        axes.set_axis_off()
        axes.set_xlim(-2.2, deepest)
        axes.set_ylim(-3.8, 1.1)
        for row, (width, stage) in enumerate(zip(architecture.widths, ratios, strict=True)):
            axes.text(-2.1, 0.25 - row, f"stage {row + 1}\n{width} channels", fontsize=8, va="center")
            for place, ratio in enumerate(stage):
                attends = place >= len(stage) - attention[row]
                height = 0.15 + 0.65 * width * ratio / widest
                colour = _COLOURS["attention" if attends else "ffn"]
                axes.bar(place + 0.4, height, 0.7, -row, color=colour, edgecolor="black", linewidth=0.6)
                text = f"x{fields.short(ratio)}" + ("\nA" if attends else "")
                axes.text(place + 0.4, height / 2 - row, text, fontsize=7, ha="center", va="center")
        axes.text(-2.1, -3.7, "x4: an FFN of 4 times the width; A: attention before it", fontsize=7)


def _point(candidate: Candidate, metric: str) -> tuple[float, float]:
    return candidate.metrics[metric], candidate.accuracy


def _axes(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Metrics, and accuracies in percent."""
    return [value for value, _ in points], [100 * accuracy for _, accuracy in points]


def _label(metric: str, unit: str) -> str:
    return f"{metric}, {unit}" if unit else metric
