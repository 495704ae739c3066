"""What is aimed at on 64-bit Arm, and what was found: exact counts and a model's cycles, no times."""

from __future__ import annotations

from typing import Any

from bench.aarch64.instructions import Counts
from effv2_kernels.benchmarking.targets import Target

S0, L = "efficientformerv2_s0", "efficientformerv2_l"
OF_RIVAL = {S0: 0.68, L: 0.72}  # instructions of an image, times ncnn's
MULTIPLY_ADDS = {"fp32": 0.72, "fp16": 0.65}  # of all instructions of S0
PRODUCT = {"fp32": 0.94, "fp16": 0.92}  # of the multiply-adds that a core can do, in the product's loop
PRODUCT_MODELS = ("neoverse-n1", "neoverse-v1")
FORMATS = ("fp32", "fp16")
# S0's instructions may be so many times those that are recorded.
BUDGET = 1.01


def counts_of(result: dict[str, Any], engine: str, fmt: str, network: str) -> Counts | None:
    """None where there are none."""
    row = row_of(result, engine, fmt, network)
    return None if row is None else Counts(**row["instructions"])


def row_of(result: dict[str, Any], engine: str, fmt: str, network: str) -> dict[str, Any] | None:
    rows = (r for r in result["counts"] if (r["engine"], r["format"], r["network"]) == (engine, fmt, network))
    return next(rows, None)


def absence(result: dict[str, Any], engine: str, fmt: str) -> str:
    """Why there are no figures."""
    found = [a["why"] for a in result["absent"] if (a["engine"], a["format"]) == (engine, fmt)]
    return found[0] if found else "not counted"


def judged(result: dict[str, Any]) -> list[Target]:
    """Every target with what was found for it; nothing is found where nothing was counted."""
    targets = []
    for fmt in FORMATS:
        ours = {network: counts_of(result, "effv2", fmt, network) for network in OF_RIVAL}
        others = {network: counts_of(result, "ncnn", fmt, network) for network in OF_RIVAL}
        why = absence(result, "effv2", fmt)

        def add(
            what: str, bound: float, at_least: bool, found: float | None, form: str, why: str = why
        ) -> None:
            targets.append(Target(what, bound, at_least, found, form, "" if found is not None else why))

        for network, bound in OF_RIVAL.items():
            mine, other = ours[network], others[network]
            found = mine.total / other.total if mine and other else None
            name = network.rpartition("_")[2].upper()
            add(f"{name} {fmt}: instructions of an image, times ncnn's", bound, False, found, ".3f")
        mine, other = ours[S0], others[S0]
        found = mine.multiply_adds / mine.total if mine else None
        add(f"S0 {fmt}: multiply-adds among all instructions", MULTIPLY_ADDS[fmt], True, found, ".1%")
        for what in ("loads", "stores"):
            found = getattr(mine, what) / getattr(other, what) if mine and other else None
            add(f"S0 {fmt}: {what} of an image, times ncnn's", 1.0, False, found, ".3f")
        for model in PRODUCT_MODELS:
            shares = (
                r["share"]
                for r in result["loops"]
                if (r["loop"], r["format"], r["model"]) == ("product", fmt, model)
            )
            what = f"{fmt}: multiply-adds of the product's loop, of what {model} can do"
            add(what, PRODUCT[fmt], True, next(shares, None), ".1%")
    return targets


def over_budget(result: dict[str, Any], recorded: dict[str, Any]) -> list[str]:
    """What of S0 executes more instructions than was recorded, and by how much."""
    found = []
    for fmt in FORMATS:
        now, before = (counts_of(r, "effv2", fmt, S0) for r in (result, recorded))
        if now and before and now.total > BUDGET * before.total:
            found.append(
                f"S0 in {fmt} executes {now.total:,} instructions, and {before.total:,} are recorded: "
                f"{now.total / before.total - 1:.1%} more. If that is meant, record it (--record)."
            )
    return found
