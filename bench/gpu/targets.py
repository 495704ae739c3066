"""What is measured, and what is asked in fp16 at 224x224: of an NVIDIA H200, of CUDA on an H100 as well."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

VARIANTS = ("s0", "s1", "s2", "l")
# And those of another family, where they are asked for.
MODELS = (*VARIANTS, "mobilenetv2_100", "mobilenetv2_140")
BATCHES = (1, 32, 256, 8)  # in the order of their importance

# Times faster than torch.compile(mode="max-autotune"), by batch, for each of VARIANTS.
_FASTER = {1: (2.0, 2.0, 1.8, 1.5), 32: (1.5, 1.5, 1.5, 1.3), 256: (1.5, 1.5, 1.4, 1.3)}
FASTER = {
    (variant, batch): asked
    for batch, row in _FASTER.items()
    for variant, asked in zip(VARIANTS, row, strict=True)
}
# Milliseconds of one call at most.
MILLISECONDS = {("s0", 1): 0.20}

# The same of the CUDA kernels: for one image the one launch beside torch.compile's graph. At least so many
# images a second; the second number is hoped for.
_CUDA_FASTER = {1: (4.0, 4.0, 3.0, 2.5), 256: (2.0, 2.0, 1.8, 1.6)}
CUDA_FASTER = {
    (variant, batch): asked
    for batch, row in _CUDA_FASTER.items()
    for variant, asked in zip(VARIANTS, row, strict=True)
}
CUDA_MILLISECONDS = {("s0", 1): 0.08}
CUDA_IMAGES = {("s0", 256): (120_000.0, 200_000.0)}
# What bench/cuda/estimate.py computed: it stands beside a target, and is never a result.
_ESTIMATES = Path(__file__).resolve().parents[1] / "results" / "cuda_estimate.json"


def speed_key(variant: str, batch: int) -> str:
    """The key of a figure in gpu.json: "s0 1"."""
    return f"{variant} {batch}"


def name_of(variant: str) -> str:
    """What ``create_model`` calls one of MODELS."""
    return f"efficientformerv2_{variant}" if variant in VARIANTS else variant


def models(text: str) -> tuple[str, ...]:
    """Those of an option such as s0,l; the type of an argument."""
    names = tuple(dict.fromkeys(text.lower().split(",")))
    unknown = [name for name in names if name not in MODELS]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown model {unknown[0]!r}; known: {', '.join(MODELS)}")
    return names


def batches(text: str) -> tuple[int, ...]:
    """Those of an option such as 1,32; the type of an argument."""
    try:
        found = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        raise argparse.ArgumentTypeError(
            f"expected positive numbers of images such as 1,32, but got {text!r}"
        )
    return found


def judged(speed: Mapping[str, Any], cuda: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """Every target beside what was found; ``found`` and ``met`` are None where it was not measured.

    speed, cuda: the sections of gpu.json. A figure whose outputs were wrong counts as not measured. Of CUDA's
    targets, ``estimated`` is what was computed ahead, in the same unit.
    """

    def figure(variant: str, batch: int, name: str, of: str) -> float | None:
        row = speed.get(speed_key(variant, batch), {})
        found: float | None = None if row.get("failure") else row.get(name, {}).get(of)
        return found

    rows = []
    for (variant, batch), asked in FASTER.items():
        found = figure(variant, batch, "faster_than", "compile")
        rows.append(_row(variant, batch, "times faster than torch.compile", asked, found))
    for (variant, batch), asked in MILLISECONDS.items():
        found = figure(variant, batch, "ms", "effv2")
        rows.append(_row(variant, batch, "milliseconds at most", asked, found, most=True))
    return rows + _judged_of_cuda(speed, {} if cuda is None else cuda)


def _judged_of_cuda(speed: Mapping[str, Any], cuda: Mapping[str, Any]) -> list[dict[str, Any]]:
    def milliseconds(variant: str, batch: int) -> float | None:
        row = cuda.get(speed_key(variant, batch), {})
        found: float | None = None if row.get("failure") else row.get("ms", {}).get("cuda")
        return found

    rows = []
    for (variant, batch), asked in CUDA_FASTER.items():
        key = speed_key(variant, batch)
        found = times_compile(speed.get(key, {}), cuda.get(key, {}))
        computed = estimated_ms(variant, batch)
        rival = None if speed.get(key, {}).get("failure") else speed.get(key, {}).get("ms", {}).get("compile")
        row = _row(variant, batch, "CUDA, times faster than torch.compile", asked, found)
        rows.append(row | {"estimated": None if rival is None or computed is None else rival / computed})
    for (variant, batch), asked in CUDA_MILLISECONDS.items():
        what = "CUDA, milliseconds at most"
        row = _row(variant, batch, what, asked, milliseconds(variant, batch), most=True)
        rows.append(row | {"estimated": estimated_ms(variant, batch)})
    for (variant, batch), (least, hoped) in CUDA_IMAGES.items():
        ms, computed = milliseconds(variant, batch), estimated_ms(variant, batch)
        rate = None if ms is None else 1e3 * batch / ms
        for what, asked in (("at least", least), ("hoped for", hoped)):
            row = _row(variant, batch, f"CUDA, images a second, {what}", asked, rate)
            rows.append(row | {"estimated": None if computed is None else 1e3 * batch / computed})
    return rows


def times_compile(speed: Mapping[str, Any], cuda: Mapping[str, Any]) -> float | None:
    """How many times faster CUDA is than torch.compile, by one row of each section; None where not known.

    Both took turns with Triton's kernels, which had the same tiles: the product of the two ratios.
    """
    if speed.get("failure") or cuda.get("failure"):
        return None
    rival = speed.get("faster_than", {}).get("compile")
    ours = cuda.get("times_triton", {}).get("cuda")
    if rival is None or ours is None or speed.get("tuned") != cuda.get("triton_tuned"):
        return None
    product: float = rival * ours
    return product


@cache
def _estimates() -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(_ESTIMATES.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found


def estimated_ms(variant: str, batch: int) -> float | None:
    """What a call of the CUDA kernels may take on an H100, None where that was not computed."""
    found: float | None = _estimates().get(variant, {}).get(f"milliseconds_{batch}")
    return found


def _row(
    variant: str, batch: int, what: str, asked: float, found: float | None, *, most: bool = False
) -> dict[str, Any]:
    """most: of what is asked, or else at least that."""
    met = None if found is None else found <= asked if most else found >= asked
    return {"variant": variant, "batch": batch, "what": what, "asked": asked, "found": found, "met": met}
