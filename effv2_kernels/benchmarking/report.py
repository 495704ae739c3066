"""Comparisons as text: a table for one, a table of ratios for many, and one with milliseconds in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from effv2_kernels.benchmarking.comparison import Comparison, Entry, percentile
from effv2_kernels.benchmarking.contestants import OPENVINO
from effv2_kernels.families import short
from effv2_kernels.tables import shape_text, text_table

LABELS = {
    "effv2": "effv2_kernels",
    "eager": "PyTorch eager",
    "compile": "torch.compile, frozen",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "openvino_streams": "OpenVINO, one stream per thread",
    OPENVINO: "OpenVINO, its faster way",
}
# The columns of the table of ratios: a contestant, or the ways to run one.
COLUMNS = ("eager", "compile", "onnxruntime", OPENVINO)
NONE = "-"


def label(name: str) -> str:
    """What people call a contestant."""
    return LABELS.get(name, name)


def one(comparison: Comparison) -> str:
    """Every contestant of one comparison: percentiles, GFLOP/s, share of the peak, error, ratio."""
    c = comparison
    lines = [
        f"{c.model}, {shape_text(c.image_size)}, batch {c.batch}, {_threads(c)}, fp32; "
        f"{c.gflop:.3f} GFLOP an image",
        f"{c.cpu}" + (f", ISA {c.isa}" if c.isa else "") + _peak_text(c),
        "",
    ]
    header = ("", "p10", "p50", "p90", "p99 ms", "GFLOP/s", "of peak", "error", "ready s", "we are faster by")
    rows = []
    for e in c.entries:
        times = [
            f"{e.percentiles[p] * 1e3:.2f}" if e.percentiles else NONE for p in ("p10", "p50", "p90", "p99")
        ]
        rows.append(
            (
                label(e.name),
                *times,
                _number(c.gflops(e.name), ".1f"),
                _number(c.share_of_peak(e.name), ".1%"),
                _number(e.error, ".1e"),
                _number(e.ready_seconds, ".2f"),
                "" if e.name == "effv2" else _times(c.ratio(e.name)),
            )
        )
    lines.append(text_table(header, rows, left=1))
    lines.append(
        "\nTimes are of one call. The ratios are medians of each round's ratio; ready: from the model in "
        "memory to the first result."
    )
    return "\n".join([*lines, *_refusals([c])])


def ratios(comparisons: Sequence[Comparison]) -> str:
    """How many times faster we are, one line for each comparison."""
    lines = [text_table(_ratio_header(), [_ratio_row(c) for c in comparisons], left=1)]
    if peaks := [c for c in comparisons if c.peak]:
        lines.append(f"\n{peaks[0].cpu}, ISA {peaks[0].isa}" + _peak_text(peaks[0]))
    return "\n".join([*lines, *_refusals(comparisons)])


def markdown(comparisons: Sequence[Comparison]) -> str:
    """Everyone's milliseconds in Markdown, and how many times faster we are, one line for each comparison."""
    header = ("ms per image", label("effv2"), *map(label, COLUMNS), "of peak")
    rows = [header, ("---", *["---:"] * (len(header) - 1)), *map(_milliseconds_row, comparisons)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def _milliseconds_row(c: Comparison) -> tuple[str, ...]:
    cells = []
    for column in COLUMNS:
        way, ratio = c.faster_way(column), _times(c.ratio(column))
        cells.append(NONE if way is None else f"{_milliseconds(c.range_per_image(way))} ({ratio})")
    return (
        _what(c),
        _milliseconds(c.range_per_image("effv2")),
        *cells,
        _number(c.share_of_peak("effv2"), ".0%"),
    )


def _milliseconds(seconds: tuple[float, float] | None) -> str:
    """A range with three digits, one number where they are the same."""
    if seconds is None:
        return NONE
    low, high = (f"{s * 1e3:.{2 if s < 0.00995 else 1}f}" for s in seconds)
    return low if low == high else f"{low}-{high}"


def _ratio_header() -> tuple[str, ...]:
    return ("times faster than", *map(label, COLUMNS), "our ms/image", "GFLOP/s", "of peak")


def _ratio_row(c: Comparison) -> tuple[str, ...]:
    seconds = c.seconds_per_image("effv2")
    return (
        _what(c),
        *(_times(c.ratio(column)) for column in COLUMNS),
        NONE if seconds is None else f"{seconds * 1e3:.2f}",
        _number(c.gflops("effv2"), ".0f"),
        _number(c.share_of_peak("effv2"), ".0%"),
    )


def _what(c: Comparison) -> str:
    return f"{short(c.model)}, batch {c.batch}, {_threads(c)}"


def _threads(c: Comparison) -> str:
    return "1 thread" if c.threads == 1 else f"{c.threads} threads"


def _refusals(comparisons: Sequence[Comparison]) -> list[str]:
    lines = []
    for c in comparisons:
        refused = [e for e in c.entries if e.refused is not None]
        lines += [
            f"No figure for {label(e.name)} ({c.model}, batch {c.batch}): {_reason(e)}" for e in refused
        ]
    return ["", *lines] if lines else []


def _reason(entry: Entry) -> str:
    lines = (entry.refused or "").strip().splitlines()
    return lines[0] if lines else ""


def _peak_text(c: Comparison) -> str:
    """The range tells a quiet machine from one that others were using as well."""
    if not c.peak:
        return ""
    low, middle, high = (percentile(c.peak, p) for p in (10, 50, 90))
    return f"; peak {middle:.0f} GFLOP/s (p10 {low:.0f}, p90 {high:.0f}), measured in each round"


def _times(ratio: float | None) -> str:
    return NONE if ratio is None else f"{ratio:.2f}x"


def _number(value: float | None, form: str) -> str:
    return NONE if value is None else format(value, form)
