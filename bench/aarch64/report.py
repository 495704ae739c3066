"""The tables of what was counted, in Markdown; docs/arm.md and the README have them of what is recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.aarch64 import latency
from bench.aarch64.cores import CORES
from bench.aarch64.targets import FORMATS, absence, counts_of, judged, row_of
from bench.readme import put_between
from effv2_kernels.families import short

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "arm.md"
README = ROOT / "README.md"
RECORDED = ROOT / "bench" / "results" / "aarch64.json"
ENGINES = {"effv2": "effv2_kernels", "ncnn": "ncnn"}
# Of the paper, milliseconds: an iPhone 12's neural engine; a Pixel 6's CPU, which is quoted from memory.
PAPER = {
    "efficientformerv2_s0": (0.9, 20.8),
    "efficientformerv2_s1": (1.1, 33.3),
    "efficientformerv2_s2": (1.6, 57.2),
    "efficientformerv2_l": (2.7, 117.7),
}


def counts_table(result: dict[str, Any]) -> str:
    """Millions of instructions of an image."""
    header = (
        "",
        "",
        "",
        "all",
        "multiply-adds",
        "other vector",
        "loads",
        "stores",
        "branches",
        "other",
        "times ncnn's",
    )
    rows = []
    for fmt in FORMATS:
        for network in result["weights"]:
            other = counts_of(result, "ncnn", fmt, network)
            for engine, name in ENGINES.items():
                found = counts_of(result, engine, fmt, network)
                if found is None:
                    continue
                kinds = (
                    found.multiply_adds,
                    found.other_vector,
                    found.loads,
                    found.stores,
                    found.branches,
                    found.other,
                )
                share = f"{kinds[0] / 1e6:.2f} ({kinds[0] / found.total:.0%})"
                ratio = f"{found.total / other.total:.2f}x" if engine == "effv2" and other else ""
                millions = (f"{kind / 1e6:.2f}" for kind in kinds[1:])
                rows.append((short(network), fmt, name, f"{found.total / 1e6:.1f}", share, *millions, ratio))
    return _table(header, rows, left=3) + _absent(result)


def loops_table(result: dict[str, Any]) -> str:
    """What llvm-mca says of the inner loops."""
    header = (
        "loop",
        "",
        "in",
        "core",
        "instructions",
        "multiply-adds",
        "cycles",
        "of all multiply-adds",
        "of all vector",
    )
    rows = [
        (
            row["loop"],
            row["format"],
            f"`{row['function']}`",
            f"{row['core']} ({row['model']})",
            str(row["instructions"]),
            str(row["multiply_adds"]),
            f"{row['cycles']:.1f}",
            f"{row['share']:.1%}",
            f"{row['vector_share']:.1%}",
        )
        for row in result["loops"]
    ]
    return _table(header, rows, left=4)


def latency_table(result: dict[str, Any]) -> str:
    """Milliseconds of the model."""
    ways = [f"{core.name}" for core in CORES.values()]
    header = (
        "",
        "",
        "",
        *(f"1 thread, {way}" for way in ways),
        "4 threads",
        "paper, iPhone 12",
        "paper, Pixel 6",
    )
    rows = []
    for fmt in FORMATS:
        for network, values in result["weights"].items():
            for engine, name in ENGINES.items():
                row = row_of(result, engine, fmt, network)
                if row is None:
                    continue
                weights = values * latency.BYTES[fmt]
                times = [latency.alone(CORES[way], row["cycles"][way], weights) for way in ways]
                # How ncnn divides its work among four is not known here.
                times += [latency.together(row["cycles"], weights)] if engine == "effv2" else []
                cells = [f"{time * 1e3:.1f}" for time in times] + [""] * (engine != "effv2")
                paper = [f"{time:.1f}" for time in PAPER.get(network, ())] if engine == "effv2" else []
                rows.append((short(network), fmt, name, *cells, *(paper or ["", ""])))
    return _table(header, rows, left=3) + _absent(result)


def targets_table(result: dict[str, Any]) -> str:
    """Every target, and what was found."""
    verdicts = {True: "met", False: "missed", None: "not counted"}
    rows = [
        (
            target.what,
            f"{'≥' if target.at_least else '≤'} {target.bound:{target.form}}",
            "" if target.found is None else f"{target.found:{target.form}}",
            verdicts[target.met] + (f": {target.note}" if target.note else ""),
        )
        for target in judged(result)
    ]
    return _table(("", "aim", "found", ""), rows, left=1)


def summary_table(result: dict[str, Any]) -> str:
    """Of each network a line: what it executes, beside ncnn, and what the model makes of it."""
    core = "Cortex-X1"
    header = (
        "",
        *(f"instructions of an image, {fmt}" for fmt in FORMATS),
        *(f"a model's ms on a {core}, {fmt}" for fmt in FORMATS),
        *(f"on four cores, {fmt}" for fmt in FORMATS),
    )
    rows = []
    for network, values in result["weights"].items():
        counted, alone, together = [], [], []
        for fmt in FORMATS:
            row = row_of(result, "effv2", fmt, network)
            ours, other = (counts_of(result, engine, fmt, network) for engine in ENGINES)
            if row is None or ours is None:
                counted, alone, together = [*counted, "-"], [*alone, "-"], [*together, "-"]
                continue
            weights = values * latency.BYTES[fmt]
            ratio = f" ({ours.total / other.total:.2f}x ncnn's)" if other else ""
            counted.append(f"{ours.total / 1e6:.1f} M{ratio}")
            alone.append(f"{latency.alone(CORES[core], row['cycles'][core], weights) * 1e3:.1f}")
            together.append(f"{latency.together(row['cycles'], weights) * 1e3:.1f}")
        rows.append((short(network), *counted, *alone, *together))
    return _table(header, rows, left=1)


def versions(result: dict[str, Any]) -> str:
    """With what it was counted, in a sentence."""
    named = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    size = result["size"]
    return f"One image of {size}x{size}, one thread, random weights, QEMU's {result['cpu']}; {named}."


TABLES = {
    "counts": lambda result: f"{counts_table(result)}\n\n{versions(result)}",
    "targets": targets_table,
    "loops": loops_table,
    "latency": latency_table,
}


SUMMARY = "arm"


def marks(name: str) -> tuple[str, str]:
    """Between which a table stands in the page."""
    return f"<!-- {name}:begin -->", f"<!-- {name}:end -->"


def fill(page: Path, readme: Path, result: dict[str, Any]) -> None:
    """Put all tables into the page, and their summary into the README."""
    for name, table in TABLES.items():
        put_between(page, marks(name), table(result))
    put_between(readme, marks(SUMMARY), summary_table(result))


def _absent(result: dict[str, Any]) -> str:
    """What has no rows, and why."""
    missing = [
        (engine, fmt)
        for fmt in FORMATS
        for engine in ENGINES
        if any((a["engine"], a["format"]) == (engine, fmt) for a in result["absent"])
    ]
    return "".join(
        f"\n\nNo figures of {ENGINES[engine]} in {fmt}: {absence(result, engine, fmt)}."
        for engine, fmt in missing
    )


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]], *, left: int) -> str:
    rule = "|".join(" --- " if i < left else " ---: " for i in range(len(header)))
    return "\n".join([f"| {' | '.join(header)} |", f"|{rule}|", *(f"| {' | '.join(row)} |" for row in rows)])
