"""Of the short table at the end, what the CUDA kernels have in it: measured, or called not measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from bench.gpu.targets import CUDA_FASTER, estimated_ms, judged, speed_key, times_compile
from effv2_kernels.tables import text_table

# What is not run where a wrapper is wrong.
BEHIND_WRAPPERS = ("CUDA parity", "CUDA", "CUDA tuning", "sanitizer", "ways of FFNs")


def why_left_out(data: dict[str, Any]) -> str:
    """Why nothing else of CUDA was run, "" where it may be."""
    return str(data.get("wrappers", {}).get("all", {}).get("failure", ""))


def wrappers(data: dict[str, Any]) -> Iterator[str]:
    """Whether the instructions that kernels are built of are right, and what compute-sanitizer found."""
    found = data.get("wrappers", {}).get("all")
    if found is not None:
        tests = found.get("tests", {})
        right = sum(not error for error in tests.values())
        yield f"CUDA wrappers: {right} of {len(tests)} do what kernels take them to do"
        for name, error in tests.items():
            if error:
                yield f"  {name}: {error}"
        if found.get("failure"):
            yield f"the CUDA kernels are not run: {found['failure']}"
    for tool, row in data.get("sanitizer", {}).items():
        yield f"{tool}: {row.get('failure') or row.get('late') or 'nothing found'}"


def speed(data: dict[str, Any]) -> Iterator[str]:
    """The figures by CUDA, the targets, and the ways of bottlenecks."""
    section = data.get("cuda", {})
    keys = list(dict.fromkeys([*section, *data.get("cuda_untuned", {})]))
    if not keys and not data.get("wanted", {}).get("cuda"):
        return
    targets = judged(data.get("speed", {}), section)
    if keys:
        yield ""
        yield "CUDA kernels, fp16, 224x224; how many times faster, medians of rounds in turns"
        header = (
            "model", "batch", "ms", "untuned", "as a graph", "one launch", "images/s", "than Triton",
            "than compile", "asked", "met", "computed ms",
        )  # fmt: skip
        yield text_table(header, [_line(data, key, targets) for key in keys], left=1)
        yield "computed: from counts ahead of any run, see docs/cuda.md; nothing of that was measured"
    for target in targets:
        if target["what"].startswith("CUDA, ") and "torch.compile" not in target["what"]:
            yield _sentence(target)
    yield from _ways(data.get("ffn", {}))


def _line(data: dict[str, Any], key: str, targets: list[dict[str, Any]]) -> tuple[str, ...]:
    variant, batch = key.split()[0], int(key.split()[1])
    row = data.get("cuda", {}).get(key, {})
    row = {} if row.get("failure") else row
    before = data.get("cuda_untuned", {}).get(key)
    before = before if isinstance(before, dict) else {}
    ms, times = row.get("ms", {}), row.get("times_triton", {})
    asked = CUDA_FASTER.get((variant, batch))
    target = next(
        (
            t for t in targets
            if (t["variant"], t["batch"]) == (variant, batch)
            and t["what"] == "CUDA, times faster than torch.compile"
        ),
        None,
    )  # fmt: skip
    return (
        variant.upper(),
        str(batch),
        _number(ms.get("cuda"), ".3f"),
        _number(before.get("cuda"), ".3f"),
        _number(ms.get("cuda graph"), ".3f"),
        _number(ms.get("cuda one launch"), ".3f"),
        _number(row.get("images_per_second"), ",.0f"),
        _number(times.get("cuda"), ".2f", "x"),
        _number(times_compile(data.get("speed", {}).get(speed_key(variant, batch), {}), row), ".2f", "x"),
        _number(asked, ".2f", "x"),
        {None: "-", True: "yes", False: "NO"}[target["met"] if target else None],
        _number(estimated_ms(variant, batch), ".3f"),
    )


def _sentence(target: dict[str, Any]) -> str:
    state = {None: "not measured", True: "met", False: "MISSED"}[target["met"]]
    form = ".3f" if "milliseconds" in target["what"] else ",.0f"
    found = "" if target["found"] is None else f"{target['found']:{form}}, "
    computed = "" if target["estimated"] is None else f" (computed: {target['estimated']:{form}})"
    return (
        f"{target['variant'].upper()}, batch {target['batch']}, {target['what']}, {target['asked']:{form}}: "
        f"{found}{state}{computed}"
    )


def _ways(section: dict[str, Any]) -> Iterable[str]:
    """The sums over all different bottlenecks of a network; "-" where one of them cannot be run so."""
    measured = {key: row for key, row in section.items() if row and "failure" not in row}
    names = list(
        dict.fromkeys(name for row in measured.values() for of_block in row.values() for name in of_block)
    )
    if not names:
        return
    yield ""
    yield "different bottlenecks one after the other, ms: each way, and the fastest for each"
    body = []
    for key, row in measured.items():
        sums = [
            sum(of[name]["ms"] for of in row.values()) if all(name in of for of in row.values()) else None
            for name in names
        ]
        best = sum(
            min(of[name]["ms"] for name in of if name != "triton") for of in row.values() if len(of) > 1
        )
        model, batch = key.split()
        body.append((model.upper(), batch, *(_number(ms, ".3f") for ms in sums), _number(best, ".3f")))
    yield text_table(("model", "batch", *names, "fastest of cuda"), body, left=1)


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "-" if value is None else f"{value:{form}}{unit}"
