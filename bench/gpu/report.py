"""The short table at the end. Nothing in it is guessed: what was not measured is called so."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import geometric_mean
from typing import Any

from bench.gpu import cuda_report
from bench.gpu.results import has_rival
from bench.gpu.targets import FASTER, judged, speed_key
from effv2_kernels.tables import text_table

_NAMED = 6  # of a longer list


def report(data: dict[str, Any]) -> str:
    """data: what gpu.json holds."""
    parts = [_environment(data["environment"]), *cuda_report.wrappers(data), *_parity(data)]
    parts += [*cuda_report.speed(data), *_speed(data), *_tiles(data), *_cpu(data)]
    return "\n".join(parts)


def wrong(data: dict[str, Any]) -> list[str]:
    """What gave wrong numbers or none, with the reason."""
    found = [
        f"{row['what']} ({key}): {row['failure']}"
        for key, rows in data.get("parity", {}).items()
        for row in rows
        if not row["ok"]
    ]
    found += [
        f"{section} of {key}: {row['failure']}"
        for section in ("wrappers", "cuda", "sanitizer", "ffn", "speed", "cpu")
        for key, row in data.get(section, {}).items()
        if row.get("failure")
    ]
    found += [
        f"{section} of {key}: {state}"
        for section in ("untuned", "tuned", "cuda_untuned", "cuda_tuned")
        for key, state in data.get(section, {}).items()
        if isinstance(state, str)
    ]
    return found


def missing(data: dict[str, Any]) -> dict[str, list[str]]:
    """By section, the keys of the last call that are not there yet."""
    keys = data.get("wanted", {})
    parity = keys.get("cuda_parity", [])
    found = {
        "CUDA wrappers": [key for key in keys.get("wrappers", []) if key not in data.get("wrappers", ())],
        "CUDA parity": [key for key in parity if key not in data["parity"]],
        "CUDA": [key for key in keys.get("cuda", []) if key not in data.get("cuda", ())],
        "CUDA tuning": [key for key in keys.get("cuda_tuned", []) if key not in data.get("cuda_tuned", ())],
        "sanitizer": [key for key in keys.get("sanitizer", []) if key not in data.get("sanitizer", ())],
        "ways of FFNs": [key for key in keys.get("ffn", []) if key not in data.get("ffn", ())],
        "parity": [key for key in keys.get("parity", []) if key not in data["parity"]],
        "speed": [key for key in keys.get("speed", []) if key not in data["speed"]],
        "torch.compile": [key for key in keys.get("compile", []) if not _compile_was_tried(data, key)],
        "tuning": [key for key in keys.get("tuned", []) if key not in data["tuned"]],
        "CPU": [key for key in keys.get("cpu", []) if key not in data["cpu"]],
    }
    return {section: left for section, left in found.items() if left}


def _compile_was_tried(data: dict[str, Any], key: str) -> bool:
    row = data["speed"].get(key, {})
    return bool(row.get("failure")) or has_rival(row)


def _environment(found: dict[str, Any]) -> str:
    changed = " with changes" if found.get("changed_files") else ""
    return (
        f"{found.get('device', 'no GPU')}, torch {found['torch']}, triton {found['triton']}, "
        f"cuda {found['cuda']}, commit {found['commit'][:12]}{changed}"
    )


def _parity(data: dict[str, Any]) -> Iterable[str]:
    rows = [row for found in data["parity"].values() for row in found]
    yield f"parity: {sum(row['ok'] for row in rows)} of {len(rows)} comparisons within their bounds"
    kinds = ((row.get("backend", "triton"), row["dtype"]) for row in rows if row["dtype"])
    for kind in dict.fromkeys(kinds):
        errors = {True: [0.0], False: [0.0]}
        for row in rows:
            if (
                (row.get("backend", "triton"), row["dtype"]) == kind
                and row["error"] is not None
                and row["bound"] > 0
            ):
                errors["-" in row["what"]].append(row["error"])
        by = "" if kind[0] == "triton" else f" by {kind[0]}"
        yield (
            f"  {kind[1]}{by}: largest relative L2 {max(errors[True]):.1e} of a block, "
            f"{max(errors[False]):.1e} of a network"
        )
    for line in wrong(data):
        yield f"  WRONG {line}"
    left_out = cuda_report.why_left_out(data)
    for section, keys in missing(data).items():
        state = "not run" if left_out and section in cuda_report.BEHIND_WRAPPERS else "not done yet"
        more = f", and {len(keys) - _NAMED} more" if len(keys) > _NAMED else ""
        yield f"{state}, {section}: {', '.join(keys[:_NAMED])}{more}"


def _speed(data: dict[str, Any]) -> Iterable[str]:
    targets = {(t["variant"], t["batch"], t["what"]): t for t in judged(data["speed"])}
    body = []
    for (variant, batch), asked in _pairs(data).items():
        row = data["speed"].get(speed_key(variant, batch), {})
        usable = row if "ms" in row and not row.get("failure") else {}
        target = targets.get((variant, batch, "times faster than torch.compile"))
        body.append(
            (
                variant.upper(),
                str(batch),
                _number(usable.get("ms", {}).get("effv2"), ".3f"),
                _number(data["untuned"].get(speed_key(variant, batch)), ".3f"),
                *(_ratio(usable, name) for name in ("eager", "eager graph", "compile")),
                "-" if asked is None else f"{asked:.2f}x",
                {None: "-", True: "yes", False: "NO"}[target["met"] if target else None],
                _number(usable.get("achieved", {}).get("bytes_per_second"), ".0f", 1e9),
                _number(usable.get("achieved", {}).get("flop_per_second"), ".1f", 1e12),
                _number(usable.get("achieved", {}).get("share_of_ceiling"), ".0%"),
            )
        )
    if not body:
        return
    yield ""
    yield "fp16, 224x224; how many times faster, medians of rounds in turns"
    header = ("model", "batch", "ms", "untuned", "than eager", "its graph", "than compile", "asked", "met")
    yield text_table((*header, "GB/s", "TFLOP/s", "of ceiling"), body, left=1)
    ceilings = [row["achieved"]["ceilings"] for row in data["speed"].values() if "achieved" in row]
    if ceilings:
        last = ceilings[-1]
        yield (
            f"ceilings measured here: copying {last['bytes'] / 1e9:.0f} GB/s, "
            f"fp16 products {last['flops'] / 1e12:.0f} TFLOP/s"
        )
    for target in targets.values():
        if target["what"] == "milliseconds at most":
            state = {None: "not measured", True: "met", False: "MISSED"}[target["met"]]
            found = "" if target["found"] is None else f"{target['found']:.3f}, "
            yield (
                f"{target['variant'].upper()}, batch {target['batch']}, at most {target['asked']:.2f} ms: "
                f"{found}{state}"
            )
    yield "what is asked is asked of an NVIDIA H200"


def _tiles(data: dict[str, Any]) -> Iterable[str]:
    """How good the order of the candidates is: the first one is what runs untuned."""
    found = {key: times for key, times in data["tile_ms"].items() if len(times) > 1}
    if not found:
        return
    lost = {key: next(iter(times.values())) / min(times.values()) for key, times in found.items()}
    worst = max(lost, key=lambda key: lost[key])
    yield (
        f"the first tile of a launch takes {geometric_mean(lost.values()):.2f} times as long as the best one "
        f"(geometric mean of {len(lost)} launches), at most {lost[worst]:.2f} times: {worst}"
    )


def _cpu(data: dict[str, Any]) -> Iterable[str]:
    body = list(scaling_rows(data["cpu"]))
    if body:
        yield ""
        yield f"CPU ({next(iter(data['cpu'].values()))['isa']}), fp32, 224x224, beside PyTorch eager"
        yield text_table(("model", "batch", "threads", "ms", "than one", "than eager"), body, left=1)


def _pairs(data: dict[str, Any]) -> dict[tuple[str, int], float | None]:
    """The pairs that were wanted or measured, with the ratio that is asked, None where none is."""
    keys = [*data.get("wanted", {}).get("speed", []), *data["speed"]]
    pairs = [(variant, int(batch)) for variant, batch in (key.split() for key in keys)]
    return {pair: FASTER.get(pair) for pair in pairs}


def scaling_rows(found: dict[str, Any]) -> Iterable[tuple[str, ...]]:
    """(model, batch, threads, ms, times as fast as one thread, than eager) of the CPU engine, as text."""
    for row in found.values():
        if "ms" not in row or row.get("failure"):
            continue
        ms = row["ms"]["effv2"]
        one = found.get(f"{row['variant']} {row['batch']} 1", {}).get("ms", {}).get("effv2")
        yield (
            row["variant"].upper(),
            str(row["batch"]),
            str(row["threads"]),
            _number(ms, ".2f"),
            "-" if one is None else f"{one / ms:.2f}x",
            f"{row['faster_than_eager']:.2f}x",
        )


def _number(value: float | str | None, form: str, unit: float = 1.0) -> str:
    return format(value / unit, form) if isinstance(value, (int, float)) else "-"


def _ratio(row: dict[str, Any], name: str) -> str:
    if name in row.get("refused", {}):
        return "refused"
    return "-" if name not in row.get("faster_than", {}) else f"{row['faster_than'][name]:.2f}x"
