"""The tables and the picture of a study, from what its seeds have written.

    python bench/search/table.py build/study/*/seed-*.json   # keeps them in bench/results/search.json
    python bench/search/table.py                             # from what is kept

What is given takes the place of what was kept of the same setting and seed. The table of the study goes
between its marks in docs/search.md, that of its other budgets behind it; the picture of the front to
docs/search.svg.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import mean, stdev
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench import readme
from bench.search.chain import JOINT, METHODS, RANDOM, SCALED, SPEED
from bench.search.comparison import unpacked
from bench.search.settings import ROOT, SETTINGS
from effv2_kernels.search import pictures
from effv2_kernels.search.mes import MES

KEPT = ROOT / "bench" / "results" / "search.json"
MARKS = ("<!-- study:begin -->", "<!-- study:end -->")
OTHER_MARKS = ("<!-- other-budgets:begin -->", "<!-- other-budgets:end -->")
EQUAL = 0.03
NAMES = {
    JOINT: "joint search",
    SPEED: "by speed alone",
    RANDOM: "random search",
    SCALED: "uniformly scaled S0",
}


@dataclass(frozen=True)
class Difference:
    """How much more often the joint search's network is right than another, as shares of all images.

    of_images: half the 95 % interval from which images were tested, the networks being what they are; of
    seeds: half that from what else the seeds might have given, Student's t; infinite of one seed.
    """

    mean: float
    of_images: float
    of_seeds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("json", nargs="*", type=Path, help="files of study.py; default: those that are kept")
    parser.add_argument("--kept", type=Path, default=KEPT, help="default: bench/results/search.json")
    parser.add_argument(
        "--page", type=Path, default=ROOT / "docs" / "search.md", help="default: docs/search.md"
    )
    parser.add_argument(
        "--svg", type=Path, default=ROOT / "docs" / "search.svg", help="default: docs/search.svg"
    )
    args = parser.parse_args()
    given = [json.loads(path.read_text(encoding="utf-8")) for path in args.json]
    kept = merged(_read(args.kept) if args.kept.exists() else [], given)
    if given:
        args.kept.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    settings = {name: list(seeds) for name, seeds in groupby(kept, lambda seed: str(seed["setting"]))}
    own = {name: seeds for name, seeds in settings.items() if not SETTINGS[name].of}
    others = {name: seeds for name, seeds in settings.items() if SETTINGS[name].of}
    for seeds in own.values():
        _put(args.page, MARKS, table(seeds))
        draw(seeds[0], args.svg)
    if others:
        _put(args.page, OTHER_MARKS, other_budgets(others))


def _put(page: Path, marks: tuple[str, str], text: str) -> None:
    readme.put_between(page, marks, text)
    print(text)


def _read(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return found


def merged(kept: list[dict[str, Any]], given: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All, in order; those that are given instead of those kept of the same setting and seed."""
    found = {(str(seed["setting"]), int(seed["seed"])): seed for seed in (*kept, *given)}
    return [found[key] for key in sorted(found)]


def other_budgets(settings: Mapping[str, Sequence[dict[str, Any]]]) -> str:
    """A row for each setting with other budgets or images: means over its seeds."""
    lines = [
        "| setting | seeds | joint search, top-1 % | better than by speed alone, % | than random search, % | "
        "parameters, M: joint, by speed alone, random | MES: joint, by speed alone, random | "
        "times, relative to the scaled S0 |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, seeds in settings.items():
        networks = [seed["networks"] for seed in seeds]
        searches = (JOINT, SPEED, RANDOM)
        sizes = (f"{mean(n[m]['metrics']['parameters'] for n in networks):.3f}" for m in searches)
        scores = (f"{mean(score(seed, m) for seed in seeds):.1f}" for m in searches)
        times = [n[m]["relative_times"]["median"] for n in networks for m in searches]
        cells = [
            f"`{name}`",
            ", ".join(str(seed["seed"]) for seed in seeds),
            f"{100 * mean(n[JOINT]['top1'] for n in networks):.2f}",
            _told(difference(seeds, SPEED)),
            _told(difference(seeds, RANDOM)),
            ", ".join(sizes),
            ", ".join(scores),
            _times(times),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def table(seeds: Sequence[dict[str, Any]]) -> str:
    """A row for each way to a network, means over the seeds."""
    numbers = ", ".join(str(seed["seed"]) for seed in seeds)
    lines = [
        f"| network | top-1, % (seeds {numbers}) | joint search is better by, % | time | parameters, M | "
        "multiply-adds, M | MES, scaled S0 100 | evaluated |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name in METHODS:
        rows = [seed["networks"][name] for seed in seeds]
        each = ", ".join(f"{100 * row['top1']:.2f}" for row in rows)
        cells = [
            NAMES[name],
            f"{100 * mean(row['top1'] for row in rows):.2f} ({each})",
            "" if name == JOINT else _told(difference(seeds, name)),
            _times([row["relative_times"]["median"] for row in rows]),
            f"{mean(row['metrics']['parameters'] for row in rows):.3f}",
            f"{mean(row['metrics']['macs'] for row in rows):.2f}",
            f"{mean(score(seed, name) for seed in seeds):.1f}",
            f"{mean(row['evaluations'] for row in rows):.0f}" if "evaluations" in rows[0] else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def score(seed: dict[str, Any], name: str) -> float:
    """MES with the scaled S0 as its reference, so that machines of other speeds do not change it."""
    networks = seed["networks"]
    return MES(references=networks[SCALED]["metrics"])(networks[name]["metrics"])


def _times(times: Sequence[float]) -> str:
    """Of all seeds, and whether they are equal to the scaled S0's."""
    beyond = "" if equal(times) else ", not equal"
    return f"{min(times):.3f} to {max(times):.3f}{beyond}" if len(times) > 1 else f"{times[0]:.3f}{beyond}"


def equal(times: Sequence[float]) -> bool:
    """Whether networks count as equally fast: within 3 % of the scaled S0 with every seed."""
    return all(abs(time - 1) <= EQUAL for time in times)


def _told(found: Difference) -> str:
    seeds = "" if math.isinf(found.of_seeds) else f", ± {100 * found.of_seeds:.2f} of seeds"
    return f"{100 * found.mean:+.2f} ± {100 * found.of_images:.2f} of images{seeds}"


def difference(seeds: Sequence[dict[str, Any]], other: str) -> Difference:
    """Of the joint search's networks and those of another way, paired by image and seed."""
    from scipy.stats import t

    pairs = []
    for seed in seeds:
        one, two = (seed["networks"][name] for name in (JOINT, other))
        hits = (unpacked(row["correct"], row["images"]) for row in (one, two))
        pairs.append([int(a) - int(b) for a, b in zip(*hits, strict=True)])
    images = [mean(of_image) for of_image in zip(*pairs, strict=True)]
    of_images = 1.96 * stdev(images) / math.sqrt(len(images))
    means = [mean(of_seed) for of_seed in pairs]
    count = len(means)
    of_seeds = math.inf if count < 2 else float(t.ppf(0.975, count - 1)) * stdev(means) / math.sqrt(count)
    return Difference(mean(images), of_images, of_seeds)


def draw(seed: dict[str, Any], path: Path) -> None:
    """Every subnet that the searches of a seed evaluated, the front, and what they found."""
    networks = seed["networks"]
    points = {
        NAMES[name]: pictures.Points(
            [tuple(point) for point in networks[name]["candidates"]],
            (networks[name]["metrics"]["latency"], networks[name]["supernet_accuracy"]),
        )
        for name in (JOINT, SPEED, RANDOM)
    }
    pictures.draw_points(points, "latency", path, unit=seed["device"]["unit"])


if __name__ == "__main__":
    main()
