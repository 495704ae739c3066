"""Draw what `make rivals` measured, and put its table into the README.

python bench/chart.py build/rivals.json [--svg docs/speed.svg] [--readme README.md] [--cpu NAME]

Of several files, those of one machine count as one longer run, and each machine gets a table.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import drawing, readme
from effv2_kernels.benchmarking import Comparison, pooled, read, report
from effv2_kernels.families import short

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
    parser.add_argument("--cpu", metavar="NAME", help="for captions, where the system hides the model")
    args = parser.parse_args()
    found = pooled([comparison for path in args.json for comparison in read(path)])
    if args.cpu is not None:
        found = [replace(comparison, cpu=args.cpu) for comparison in found]
    draw(found, Path(args.svg))
    if args.readme is not None:
        readme.put_between(Path(args.readme), MARKS, table(found))


def draw(found: Sequence[Comparison], path: Path) -> None:
    """One panel for each batch, one group of bars for each model, one bar for each rival, on one machine."""
    found = next(iter(by_machine(found)))
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


def by_machine(found: Sequence[Comparison]) -> list[list[Comparison]]:
    """Those with the same processor and ISA together."""
    machines: dict[tuple[str, str | None], list[Comparison]] = {}
    for comparison in found:
        machines.setdefault((comparison.cpu, comparison.isa), []).append(comparison)
    return list(machines.values())


def table(found: Sequence[Comparison]) -> str:
    """What stands in the README."""
    parts = ["![How many times faster than each rival](docs/speed.svg)"]
    parts += [f"{report.markdown(same)}\n\n{caption(same)}" for same in by_machine(found)]
    return "\n\n".join(parts)


def caption(found: Sequence[Comparison]) -> str:
    """Of a table of one machine."""
    c = found[0]
    peak = statistics.median(p for other in found for p in other.peak)
    versions = ", ".join(f"{name} {version}" for name, version in c.versions.items())
    return (
        f"Milliseconds are the 10th to the 90th percentile over the rounds; in brackets, how many times "
        f"faster effv2_kernels is: the median of the rounds' ratios. Measured on {c.cpu} with {c.isa}, "
        f"224x224, fp32, random weights; FMA peak {peak:.0f} GFLOP/s; {versions}."
    )


if __name__ == "__main__":
    main()
