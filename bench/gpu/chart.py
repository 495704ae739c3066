"""Draw what run_all.py measured, and put its tables into the README and the page on speed.

python bench/gpu/chart.py bench/results/h100.json [--readme README.md] [--page docs/speed.md]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench import readme
from bench.gpu.results import read
from bench.gpu.targets import BATCHES, MODELS, VARIANTS, name_of, speed_key, times_compile
from effv2_kernels.families import short

MARKS = ("<!-- gpu:begin -->", "<!-- gpu:end -->")
UNTUNED_MARKS = ("<!-- gpu-untuned:begin -->", "<!-- gpu-untuned:end -->")
RIVALS = {"eager": "PyTorch eager", "eager graph": "eager in a CUDA graph", "compile": "torch.compile"}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("json", type=Path, help="gpu.json of run_all.py")
    parser.add_argument("--svg", default="docs/speed_gpu.svg", type=Path)
    parser.add_argument("--readme", type=Path, help="file whose table, between its two marks, is replaced")
    parser.add_argument("--page", type=Path, help="the same of the times before tuning")
    args = parser.parse_args()
    data = read(args.json)
    if data is None or not figures(data):
        raise SystemExit(f"{args.json} holds no figures of bench/gpu/run_all.py.")
    draw(data, args.svg)
    if cuda_figures(data):
        draw_cuda(data, args.svg.with_stem(f"{args.svg.stem}_cuda"))
    if args.readme is not None:
        readme.put_between(args.readme, MARKS, table(data))
    if args.page is not None:
        readme.put_between(args.page, UNTUNED_MARKS, untuned_table(data))


def figures(data: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of "speed" that are right, by batch and size."""
    keys = [speed_key(variant, batch) for batch in sorted(BATCHES) for variant in VARIANTS]
    found = [data["speed"][key] for key in keys if key in data["speed"]]
    return [row for row in found if "ms" in row and not row.get("failure")]


def cuda_figures(data: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of "cuda" that are right, with what is known of torch.compile beside them."""
    keys = [speed_key(variant, batch) for batch in sorted(BATCHES) for variant in VARIANTS]
    section = data.get("cuda", {})
    found = [section[key] for key in keys if "ms" in section.get(key, {}) and not section[key].get("failure")]
    return [
        row
        | {
            "times_compile": times_compile(
                data["speed"].get(speed_key(row["variant"], row["batch"]), {}), row
            )
        }
        for row in found
    ]


def rivals_of(rows: list[dict[str, Any]]) -> list[str]:
    """Those that were measured beside any of the rows."""
    return [rival for rival in RIVALS if any(rival in row["faster_than"] for row in rows)]


def draw(data: dict[str, Any], path: Path) -> None:
    """One panel for each batch, one group of bars for each model, one bar for each rival."""
    from bench import drawing  # a table needs no matplotlib

    colours = dict(zip(RIVALS.values(), (drawing.GREY, drawing.SKY, drawing.ORANGE), strict=True))
    rows = figures(data)
    batches = sorted({row["batch"] for row in rows})
    rivals = rivals_of(rows)
    figure, axes = drawing.panels(len(batches))
    for batch, panel in zip(batches, axes, strict=True):
        shown = [row for row in rows if row["batch"] == batch]
        heights = {RIVALS[rival]: [row["faster_than"].get(rival) for row in shown] for rival in rivals}
        drawing.bars(panel, [row["variant"].upper() for row in shown], heights, colours)
        panel.set_title(f"batch {batch}", fontsize=10)
        panel.set_yscale("log")
    axes[0].set_ylabel("times faster than")
    drawing.save(figure, axes[0], f"224x224, fp16, {data['environment']['device']}", path)


def draw_cuda(data: dict[str, Any], path: Path) -> None:
    """As ``draw``, of the CUDA kernels beside Triton's and torch.compile."""
    from bench import drawing  # a table needs no matplotlib

    colours = {"our Triton kernels": drawing.GREY, RIVALS["compile"]: drawing.ORANGE}
    rows = cuda_figures(data)
    batches = sorted({row["batch"] for row in rows})
    figure, axes = drawing.panels(len(batches))
    for batch, panel in zip(batches, axes, strict=True):
        shown = [row for row in rows if row["batch"] == batch]
        heights = {
            "our Triton kernels": [row["times_triton"]["cuda"] for row in shown],
            RIVALS["compile"]: [row["times_compile"] for row in shown],
        }
        drawing.bars(panel, [row["variant"].upper() for row in shown], heights, colours)
        panel.set_title(f"batch {batch}", fontsize=10)
    axes[0].set_ylabel("CUDA kernels, times faster than")
    drawing.save(figure, axes[0], f"224x224, fp16, {data['environment']['device']}", path)


def cuda_table(data: dict[str, Any]) -> str:
    """What stands in the README of the CUDA kernels; "" where there are no figures."""
    lines = []
    for row in cuda_figures(data):
        times = [row["times_triton"]["cuda"], row["times_compile"]]
        ms = [row["ms"].get(name) for name in ("cuda", "cuda graph", "cuda one launch")]
        cells = [f"{row['variant'].upper()}, batch {row['batch']}"]
        cells += ["-" if ratio is None else f"{ratio:.2f}x" for ratio in times]
        cells += ["-" if each is None else f"{each:.3f}" for each in ms]
        lines.append(_row(*cells, f"{row['images_per_second']:,.0f}"))
    if not lines:
        return ""
    header = ["CUDA kernels, times faster than", "our Triton kernels", RIVALS["compile"], "ms", "as a graph"]
    header += ["in one launch", "images/s"]
    head = [_row(*header), "| --- |" + " ---: |" * (len(header) - 1)]
    return "\n".join(["", "", *head, *lines])


def untuned_table(data: dict[str, Any]) -> str:
    """Milliseconds of each network, a column, before its tiles were measured, by numbers of images."""
    found = {key: ms for key, ms in data["untuned"].items() if isinstance(ms, float)}
    variants = [name for name in MODELS if any(key.split()[0] == name for key in found)]
    lines = [
        _row("images", *(short(name_of(variant)) for variant in variants)),
        "|" + " ---: |" * (len(variants) + 1),
    ]
    for batch in sorted({int(key.split()[1]) for key in found}):
        times = (found.get(speed_key(variant, batch)) for variant in variants)
        lines.append(_row(str(batch), *("-" if ms is None else f"{ms:.3f}" for ms in times)))
    return "\n".join(lines)


def _row(*cells: str) -> str:
    return " | ".join(["", *cells, ""]).strip()


def table(data: dict[str, Any]) -> str:
    """What stands in the README."""
    rows = figures(data)
    rivals = rivals_of(rows)
    header = ["times faster than", *(RIVALS[rival] for rival in rivals)]
    header += ["our ms", "images/s", "GB/s", "TFLOP/s", "of ceiling"]
    lines = [_row(*header), "| --- |" + " ---: |" * (len(header) - 1)]
    for row in rows:
        ms, achieved = row["ms"]["effv2"], row["achieved"]
        cells = [f"{row['variant'].upper()}, batch {row['batch']}"]
        cells += [f"{row['faster_than'][r]:.2f}x" if r in row["faster_than"] else "-" for r in rivals]
        cells += [f"{ms:.3f}", f"{1e3 * row['batch'] / ms:,.0f}"]
        cells += [f"{achieved['bytes_per_second'] / 1e9:.0f}", f"{achieved['flop_per_second'] / 1e12:.1f}"]
        lines.append(_row(*cells, f"{achieved['share_of_ceiling']:.0%}"))
    of, ceilings = data["environment"], rows[-1]["achieved"]["ceilings"]
    return (
        "![How many times faster than each rival on a GPU](docs/speed_gpu.svg)\n\n"
        + "\n".join(lines)
        + cuda_table(data)
        + f"\n\nMeasured on an {of['device']}, 224x224, fp16, random weights; ceilings of the same run: "
        f"{ceilings['bytes'] / 1e9:.0f} GB/s, {ceilings['flops'] / 1e12:.0f} TFLOP/s; "
        f"torch {of['torch']}, triton {of['triton']}."
    )


if __name__ == "__main__":
    main()
