"""What is measured, and the speed that is asked of an NVIDIA H200 in fp16 at 224x224."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
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


def speed_key(variant: str, batch: int) -> str:
    """The key of a figure in gpu.json: "s0 1"."""
    return f"{variant} {batch}"


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


def judged(speed: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every target beside what was found; ``found`` and ``met`` are None where it was not measured.

    speed: the section of gpu.json. A figure whose outputs were wrong counts as not measured.
    """

    def figure(variant: str, batch: int, name: str, of: str) -> float | None:
        row = speed.get(speed_key(variant, batch), {})
        found: float | None = None if row.get("failure") else row.get(name, {}).get(of)
        return found

    rows = []
    for (variant, batch), asked in FASTER.items():
        found = figure(variant, batch, "faster_than", "compile")
        met = None if found is None else found >= asked
        what = "times faster than torch.compile"
        rows.append(_row(variant, batch, what, asked, found, met))
    for (variant, batch), asked in MILLISECONDS.items():
        found = figure(variant, batch, "ms", "effv2")
        met = None if found is None else found <= asked
        rows.append(_row(variant, batch, "milliseconds at most", asked, found, met))
    return rows


def _row(
    variant: str, batch: int, what: str, asked: float, found: float | None, met: bool | None
) -> dict[str, Any]:
    return {"variant": variant, "batch": batch, "what": what, "asked": asked, "found": found, "met": met}
