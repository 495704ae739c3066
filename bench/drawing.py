"""What the charts of measured speed share: panels of grouped bars, and colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Distinguishable by people with any kind of colour vision (Okabe and Ito).
GREY, ORANGE, SKY, BLUE = "#999999", "#E69F00", "#56B4E9", "#0072B2"
GREEN, RED, PINK = "#009E73", "#D55E00", "#CC79A7"


def panels(count: int, columns: int | None = None) -> tuple[Figure, Sequence[Axes]]:
    """A figure with panels, ``columns`` of them side by side, or all.

    The same figures give the same file, and text stays text.
    """
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "effv2", "font.family": "sans-serif"})
    columns = columns or count
    rows = -(-count // columns)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(4.6 * columns, 3.4 * rows),
        sharex=rows > 1,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for unused in axes.flat[count:]:
        unused.remove()
    return figure, axes.flat[:count]


def bars(
    panel: Axes,
    groups: Sequence[str],
    heights: Mapping[str, Sequence[float | None]],
    colours: Mapping[str, str],
) -> None:
    """A group of bars for each of ``groups``, one bar for each key of ``heights``; None is no bar."""
    width = 0.8 / len(heights)
    for i, (name, values) in enumerate(heights.items()):
        positions = [group + (i - (len(heights) - 1) / 2) * width for group in range(len(groups))]
        drawn = panel.bar(
            positions, [v or 0.0 for v in values], width * 0.92, color=colours[name], label=name
        )
        panel.bar_label(drawn, [f"{v:.2f}" if v else "" for v in values], fontsize=6.5, padding=1)
    panel.axhline(1.0, color="black", linewidth=0.8)
    panel.set_xticks(range(len(groups)), groups)
    panel.spines[["top", "right"]].set_visible(False)


def save(figure: Figure, panel: Axes, title: str, path: Path) -> None:
    """With one legend below all panels."""
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, facecolor="white", metadata={"Date": None} if path.suffix == ".svg" else None)
