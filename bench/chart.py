"""Draw what `make rivals` measured, and put its table into the README.

python bench/chart.py build/rivals.json [--svg docs/speed.svg] [--readme README.md]
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import drawing, readme
from effv2_kernels.benchmarking import Comparison, read, report
from effv2_kernels.benchmarking.targets import short

COLOURS = {
    "eager": drawing.GREY,
    "compile": drawing.ORANGE,
    "onnxruntime": drawing.SKY,
    report.COLUMNS[-1]: drawing.BLUE,
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
        readme.put_between(Path(args.readme), MARKS, table(found))


def draw(found: Sequence[Comparison], path: Path) -> None:
    """One panel for each batch, one group of bars for each model, one bar for each rival."""
    threads = max(c.threads for c in found)
    batches = sorted({c.batch for c in found if c.threads == threads})
    figure, axes = drawing.panels(len(batches))
    colours = {report.label(rival): colour for rival, colour in COLOURS.items()}
    for batch, panel in zip(batches, axes, strict=True):
        shown = [c for c in found if (c.batch, c.threads) == (batch, threads)]
        heights = {report.label(rival): [c.ratio(rival) for c in shown] for rival in report.COLUMNS}
        drawing.bars(panel, [short(c.model) for c in shown], heights, colours)
        panel.set_title(f"batch {batch}", fontsize=10)
    axes[0].set_ylabel("times faster than")
    c = found[0]
    title = f"224x224, fp32, {threads} threads, {c.cpu}, ISA {c.isa}"
    drawing.save(figure, axes[0], title, path)


def table(found: Sequence[Comparison]) -> str:
    """What stands in the README."""
    c = found[0]
    peak = statistics.median(p for other in found for p in other.peak)
    versions = ", ".join(f"{name} {version}" for name, version in c.versions.items())
    return (
        f"![How many times faster than each rival](docs/speed.svg)\n\n{report.markdown(found)}\n\n"
        f"Measured on {c.cpu} with {c.isa}, 224x224, fp32, random weights; FMA peak {peak:.0f} GFLOP/s; "
        f"{versions}."
    )


if __name__ == "__main__":
    main()
