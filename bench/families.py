"""S0 against MobileNetV2, the question of the paper, in this engine and in OpenVINO: one run, in turns.

python bench/families.py [--batch 1] [--threads 2] [--seconds 60] [--readme README.md]
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

import effv2_kernels
from bench.readme import put_between
from effv2_kernels import cpu
from effv2_kernels.benchmarking.comparison import median_ratio
from effv2_kernels.benchmarking.contestants import find
from effv2_kernels.benchmarking.interleave import interleave
from effv2_kernels.benchmarking.measure import reference, relative_error
from effv2_kernels.families import short
from effv2_kernels.shapes import randomise

ENGINES = {"effv2": "effv2_kernels", "openvino": "OpenVINO"}
MODELS = ("efficientformerv2_s0", "efficientformerv2_s1", "mobilenetv2_100", "mobilenetv2_140")
# (ours, the MobileNetV2 that it is held against)
PAIRS = ((MODELS[0], MODELS[2]), (MODELS[0], MODELS[3]), (MODELS[1], MODELS[3]))
MARKS = ("<!-- families:begin -->", "<!-- families:end -->")
BOUND = 1e-5  # relative L2 of every output; tests hold this package to a tenth of it

Rounds = Mapping[tuple[str, str], list[float]]  # seconds of an image in each round, by engine and model


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch", type=int, default=1, metavar="N")
    parser.add_argument("--threads", type=int, default=2, metavar="N")
    parser.add_argument("--seconds", type=float, default=60, help="of timing; default: 60")
    parser.add_argument("--readme", metavar="FILE", help="put the table between the marks of this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    text = table(measure(args.batch, args.threads, args.seconds))
    where = (
        f"{cpu.native().cpu_name()} with {cpu.default_isa()}, batch {args.batch}, {args.threads} threads, "
        f"fp32, 224x224, random weights; medians of the rounds of one run."
    )
    print(f"{text}\n\n{where}")
    if args.readme:
        put_between(Path(args.readme), MARKS, f"{text}\n\n{where}")


def measure(batch: int, threads: int, seconds: float, size: int = 224) -> Rounds:
    """Every model in every engine, its outputs checked."""
    runs: dict[str, Callable[[], object]] = {}
    expected: dict[str, torch.Tensor] = {}
    images = torch.randn(batch, 3, size, size)
    for name in MODELS:
        torch.manual_seed(0)
        model = effv2_kernels.create_model(name, img_size=size)
        randomise(model)
        expected[name], _ = reference(model, images)
        for engine in ENGINES:
            runs[f"{engine} {name}"], _ = find(engine).build(model, images, threads)
    found = interleave(runs, seconds)
    for key, output in found.outputs.items():
        assert isinstance(output, torch.Tensor)
        error = relative_error(output, expected[key.split()[1]])
        if not error <= BOUND:
            raise SystemExit(f"{key} is wrong: relative L2 {error:.1e}")
    return {
        (key.split()[0], key.split()[1]): [statistics.median(calls) / batch for calls in rounds]
        for key, rounds in found.calls.items()
    }


def table(rounds: Rounds) -> str:
    """Milliseconds of an image of every model, then how much longer ours take, in Markdown."""
    lines = [f"| | {' | '.join(ENGINES.values())} |", f"| --- |{' ---: |' * len(ENGINES)}"]
    for name in MODELS:
        cells = [f"{statistics.median(rounds[engine, name]) * 1e3:.2f} ms" for engine in ENGINES]
        lines.append(f"| {short(name)} | {' | '.join(cells)} |")
    for ours, other in PAIRS:
        cells = [f"{median_ratio(rounds[engine, ours], rounds[engine, other]):.2f}x" for engine in ENGINES]
        lines.append(f"| {short(ours)}, times {short(other)} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
