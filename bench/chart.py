"""Draw what `make rivals` measured, and put its table into the README.

python bench/chart.py build/rivals.json [--svg docs/speed.svg] [--readme README.md]
"""

from __future__ import annotations

import argparse
import re
import statistics
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from effv2_kernels.benchmarking import Comparison, read, report
from effv2_kernels.benchmarking.targets import short

# Distinguishable by people with any kind of colour vision (Okabe and Ito).
COLOURS = {
    "eager": "#999999",
    "compile": "#E69F00",
    "onnxruntime": "#56B4E9",
    report.COLUMNS[-1]: "#0072B2",
}
MARKS = ("<!-- speed:begin -->", "<!-- speed:end -->")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("json", nargs="+", help="files of --rivals-json or --json")
    parser.add_argument("--svg", default="docs/speed.svg")
    parser.add_argument("--readme", help="file whose table, between its two marks, is replaced")
    args = parser.parse_args()
    found = [comparison for path in args.json for comparison in read(path)]
    draw(found, Path(args.svg))
    if args.readme is not None:
        put_table(Path(args.readme), found)


def draw(found: Sequence[Comparison], path: Path) -> None:
    """One panel for each batch, one group of bars for each model, one bar for each rival."""
    # Text stays text, and the same figures give the same file.
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "effv2", "font.family": "sans-serif"})
    threads = max(c.threads for c in found)
    batches = sorted({c.batch for c in found if c.threads == threads})
    figure, axes = plt.subplots(
        1, len(batches), figsize=(4.6 * len(batches), 3.4), sharey=True, squeeze=False, layout="constrained"
    )
    for batch, panel in zip(batches, axes[0], strict=True):
        draw_panel(panel, [c for c in found if (c.batch, c.threads) == (batch, threads)])
        panel.set_title(f"batch {batch}", fontsize=10)
    axes[0][0].set_ylabel("times faster than")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    c = found[0]
    figure.suptitle(f"224x224, fp32, {threads} threads, {c.cpu}, ISA {c.isa}", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, facecolor="white", metadata={"Date": None})


def draw_panel(panel: Axes, found: Sequence[Comparison]) -> None:
    width = 0.8 / len(report.COLUMNS)
    for i, rival in enumerate(report.COLUMNS):
        positions = [group + (i - (len(report.COLUMNS) - 1) / 2) * width for group in range(len(found))]
        heights = [c.ratio(rival) or 0.0 for c in found]  # no figure, no bar
        bars = panel.bar(positions, heights, width * 0.92, color=COLOURS[rival], label=report.label(rival))
        panel.bar_label(bars, [f"{h:.2f}" if h else "" for h in heights], fontsize=6.5, padding=1)
    panel.axhline(1.0, color="black", linewidth=0.8)
    panel.set_xticks(range(len(found)), [short(c.model) for c in found])
    panel.spines[["top", "right"]].set_visible(False)


def put_table(path: Path, found: Sequence[Comparison]) -> None:
    """Replace what stands between the marks of the README."""
    text = path.read_text(encoding="utf-8")
    begin, end = MARKS
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"{path} has no {begin} ... {end} to fill.")
    c = found[0]
    peak = statistics.median(p for other in found for p in other.peak)
    versions = ", ".join(f"{name} {version}" for name, version in c.versions.items())
    body = (
        f"{begin}\n![How many times faster than each rival](docs/speed.svg)\n\n{report.markdown(found)}\n\n"
        f"Measured on {c.cpu} with {c.isa}, 224x224, fp32, random weights; FMA peak {peak:.0f} GFLOP/s; "
        f"{versions}.\n{end}"
    )
    path.write_text(pattern.sub(lambda match: body, text), encoding="utf-8")


if __name__ == "__main__":
    main()
