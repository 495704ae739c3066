"""The speed that this package promises, measured: ``python -m effv2_kernels.benchmarking.targets``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from effv2_kernels.benchmarking import footprint, report
from effv2_kernels.benchmarking.comparison import Comparison, check_writable, write
from effv2_kernels.benchmarking.contestants import OPENVINO, Contestant, effv2, installed
from effv2_kernels.benchmarking.interleave import check_seconds
from effv2_kernels.benchmarking.measure import compare, peak_gauge
from effv2_kernels.errors import Effv2Error
from effv2_kernels.families import short, variant_named
from effv2_kernels.tables import text_table

EFFICIENTFORMERS = (
    "efficientformerv2_s0",
    "efficientformerv2_s1",
    "efficientformerv2_s2",
    "efficientformerv2_l",
)
MODELS = (*EFFICIENTFORMERS, "mobilenetv2_100", "mobilenetv2_140")
BATCHES = (1, 16)
THREADS = 2
# All that the promises are about, each way to run them: the fastest counts.
FASTEST = f"{OPENVINO}+onnxruntime"
# (model, batch, threads): times faster than the fastest of these
FASTER = {
    ("efficientformerv2_s0", 1, THREADS): 1.40,
    ("efficientformerv2_s1", 1, THREADS): 1.35,
    ("efficientformerv2_s2", 1, THREADS): 1.20,
    ("efficientformerv2_l", 1, THREADS): 1.15,
    ("efficientformerv2_s0", 16, THREADS): 1.40,
    ("efficientformerv2_s1", 16, THREADS): 1.35,
    ("efficientformerv2_s2", 16, THREADS): 1.25,
    ("efficientformerv2_l", 16, THREADS): 1.15,
    ("efficientformerv2_s0", 1, 1): 1.25,
    ("mobilenetv2_100", 1, THREADS): 1.20,
    ("mobilenetv2_140", 1, THREADS): 1.20,
    ("mobilenetv2_100", 16, THREADS): 1.10,
    ("mobilenetv2_140", 16, THREADS): 1.10,
}
# Share of the FMA peak measured in the same rounds, at batch 1
SHARE = {
    "efficientformerv2_s0": 0.70,
    "efficientformerv2_s1": 0.73,
    "efficientformerv2_s2": 0.76,
    "efficientformerv2_l": 0.80,
}
AVX2_KEEPS = 0.80  # of the speed of AVX-512
OVERSUBSCRIBED = 8  # threads asked for where there are THREADS cores
OVERSUBSCRIBED_COSTS = 1.3
OPTIMIZE_SECONDS = {"efficientformerv2_s0": 0.3, "efficientformerv2_l": 1.0}
VERIFY_SECONDS = {"efficientformerv2_s0": 0.15}
MEMORY_OVER_WEIGHTS = 2.5
IMPORT_SECONDS = 0.05


@dataclass(frozen=True)
class Target:
    """One promise and what was found; ``found`` is None where this machine cannot tell, as ``note`` says."""

    what: str
    bound: float
    at_least: bool  # else at most
    found: float | None
    form: str = ".2f"
    note: str = ""

    @property
    def met(self) -> bool | None:
        if self.found is None:
            return None
        return self.found >= self.bound if self.at_least else self.found <= self.bound


def speed_targets(comparison: Comparison) -> list[Target]:
    """The promises about one comparison of "effv2" with OpenVINO and ONNX Runtime."""
    c = comparison
    targets = []
    where = f"{short(c.model)}, batch {c.batch}, {c.threads} thread{'s' if c.threads > 1 else ''}"
    # Where one of them has no figure, the others alone would flatter us.
    refused = [
        f"no figure for {report.label(e.name)}: {e.refused}"
        for e in c.entries
        if e.refused is not None and (e.name == "effv2" or e.name in FASTEST.split("+"))
    ]
    bound = FASTER.get((c.model, c.batch, c.threads))
    if bound is not None:
        rival = c.faster_way(FASTEST)
        ratio = None if refused else c.ratio(FASTEST)
        note = "; ".join(refused) or (report.label(rival) if rival else "no rival took part")
        targets.append(Target(f"{where}: times faster than the fastest rival", bound, True, ratio, note=note))
    if c.batch == 1 and c.threads == THREADS and c.model in SHARE:
        share = c.share_of_peak("effv2")
        targets.append(Target(f"{where}: share of the FMA peak", SHARE[c.model], True, share, ".1%"))
    return targets


def isa_target(model: Any, images: Any, seconds: float) -> Target:
    """Forced AVX2 beside AVX-512, on one model."""
    from effv2_kernels import cpu

    what = "S0, batch 1: AVX2's share of the speed of AVX-512"
    if not {"avx2", "avx512"} <= set(cpu.native().available_isas()):
        return Target(what, AVX2_KEEPS, True, None, note="this machine has no AVX-512")
    pair = [effv2("avx512", isa="avx512"), effv2("avx2", isa="avx2")]
    found = compare(model, images, pair, threads=THREADS, seconds=seconds)
    # Some processors have units for AVX-512 that are as wide as its vectors, others take it in two halves.
    narrow, wide = (peak_gauge(THREADS, isa) for isa in ("avx2", "avx512"))
    note = f"it has {narrow() / wide():.2f} of the peak" if narrow and wide else ""
    # How much faster AVX2 is than AVX-512 is the share that it keeps.
    return Target(what, AVX2_KEEPS, True, found.ratio("avx512", ours="avx2"), note=note)


def threads_target(model: Any, images: Any, seconds: float) -> Target:
    """More threads asked for than there are cores."""
    from effv2_kernels import cpu

    what = f"S0, batch 1: time with {OVERSUBSCRIBED} threads over that with {THREADS}"
    pair: list[Contestant] = [effv2("many", threads=OVERSUBSCRIBED), effv2("few", threads=THREADS)]
    found = compare(model, images, pair, threads=THREADS, seconds=seconds)
    cores = cpu.native().usable_cpus()
    note = f"{cores} cores" if cores != THREADS else ""
    return Target(what, OVERSUBSCRIBED_COSTS, False, found.ratio("many", ours="few"), note=note)


def footprint_targets(models: Sequence[str]) -> list[Target]:
    """Import, optimize() and its memory, each in fresh processes."""
    targets = [
        Target(
            "import effv2_kernels, beyond import torch: ms",
            IMPORT_SECONDS * 1e3,
            False,
            footprint.import_seconds() * 1e3,
            ".1f",
        )
    ]
    for model in [name for name in models if name in OPTIMIZE_SECONDS]:
        bound = OPTIMIZE_SECONDS[model]
        what = f"{short(model)}: first optimize() of a process, seconds"
        targets.append(Target(what, bound, False, footprint.optimize_seconds(model)))
    for model in [name for name in models if name in VERIFY_SECONDS]:
        what = f"{short(model)}: what optimize() takes to verify, seconds"
        targets.append(Target(what, VERIFY_SECONDS[model], False, footprint.verify_seconds(model)[0]))
    for model in models:
        what = f"{short(model)}: peak extra memory of optimize(), times the weights"
        found = footprint.optimize_memory(model).peak_over_weights
        targets.append(Target(what, MEMORY_OVER_WEIGHTS, False, found))
    return targets


def table(targets: Sequence[Target]) -> str:
    """Promise, bound, what was found, verdict."""
    verdicts = {True: "met", False: "MISSED", None: "not measured"}
    rows = [
        (
            t.what,
            f"{'>=' if t.at_least else '<='} {format(t.bound, t.form)}",
            "-" if t.found is None else format(t.found, t.form),
            verdicts[t.met] + (f" ({t.note})" if t.note else ""),
        )
        for t in targets
    ]
    return text_table(("target", "bound", "found", ""), rows, left=1)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print both tables, and return 1 if a target is missed."""
    parser = argparse.ArgumentParser(
        prog="python -m effv2_kernels.benchmarking.targets", description="Measure what is promised."
    )
    parser.add_argument(
        "--rivals",
        default=FASTEST.replace("+", ","),
        help="besides those that the targets are about: eager, compile; or all",
    )
    parser.add_argument("--models", default=",".join(MODELS), help="e.g. s0,l or in full")
    parser.add_argument("--seconds", type=float, default=12.0, help="of timing per comparison; default: 12")
    parser.add_argument("--json", metavar="FILE", help="also write everything measured")
    args = parser.parse_args(argv)
    rivals = installed() if args.rivals == "all" else args.rivals.split(",")
    try:
        check_seconds(args.seconds)
        if args.json is not None:
            check_writable(args.json)
        models = [variant_named(name) for name in args.models.split(",")]
    except Effv2Error as error:
        parser.error(str(error))
    comparisons, targets = measure(models, rivals, args.seconds, lambda text: print(text, file=sys.stderr))
    print(report.ratios(comparisons))
    print()
    print(table(targets))
    if args.json is not None:
        write(args.json, comparisons, targets=[asdict(t) | {"met": t.met} for t in targets])
    return int(any(t.met is False for t in targets))


def measure(
    models: Sequence[str], rivals: Sequence[str], seconds: float, tell: Callable[[str], None]
) -> tuple[list[Comparison], list[Target]]:
    """Everything that the targets are about, for ``models``."""
    import torch

    from effv2_kernels import create_model
    from effv2_kernels.shapes import randomise

    tell("import, optimize() and its memory, in fresh processes")
    footprints = footprint_targets(models)
    tell(table(footprints))
    comparisons: list[Comparison] = []
    targets: list[Target] = []
    extra: list[Target] = []
    for name in models:
        torch.manual_seed(0)
        model = create_model(name)
        randomise(model)
        for batch in BATCHES:
            images = torch.randn(batch, 3, 224, 224)
            ways = [r for r in rivals if batch > 1 or r != "openvino_streams"]
            tell(f"{name}, batch {batch}: {', '.join(ways)}")
            # A round of 16 images takes long, and a median needs rounds.
            budget = seconds * (2 if batch > 1 else 1)
            comparisons.append(
                compare(model, images, ["effv2", *ways], threads=THREADS, seconds=budget, name=name)
            )
            tell(report.one(comparisons[-1]))
        if name == "efficientformerv2_s0":
            one = torch.randn(1, 3, 224, 224)
            tell(f"{name}, one thread; other ISAs; more threads than cores")
            ways = [r for r in rivals if r == "openvino"]
            comparisons.append(compare(model, one, ["effv2", *ways], threads=1, seconds=seconds, name=name))
            extra = [isa_target(model, one, seconds), threads_target(model, one, seconds)]
    for comparison in comparisons:
        targets += speed_targets(comparison)
    return comparisons, [*targets, *extra, *footprints]


if __name__ == "__main__":
    sys.exit(main())
