"""What the whole chain costs on ImageNet, computed: the table of docs/search.md.

    python bench/search/imagenet.py

Nothing here was run. Times of networks are those that timm publishes for S0 to L on an RTX 5090 (AMP,
compiled, batch 1024), and between them by a power of the multiply-adds; a step of training takes three times
as long as an inference, as a backward pass has twice the multiply-adds of a forward pass.
"""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from bench import readme
from bench.search.settings import ROOT
from effv2_kernels.families.efficientformer_v2 import VARIANTS
from effv2_kernels.search.cost import Costs
from effv2_kernels.search.space import SearchSpace
from effv2_kernels.train import PRESETS

MARKS = ("<!-- imagenet:begin -->", "<!-- imagenet:end -->")
GPUS = 8
IMAGES, EPOCHS = 1_281_167, 100
HOLD_OUT, HELD_OUT, CALIBRATION = 0.05, 10_000, 1_000
# Images a second, results/benchmark-infer-amp-nchw-pt2*-rtx5090.csv of timm.
PUBLISHED = {"s0": 30_219, "s1": 20_898, "s2": 13_145, "l": 8_024}
TRAINING = 3.0
TEACHER = 15.96e3  # millions of multiply-adds of RegNetY-16GF, of which each image needs one forward pass


@dataclass(frozen=True)
class Step:
    """hours: of one GPU. gpus: that it can use."""

    name: str
    how: str
    hours: float
    gpus: int = GPUS


def main() -> None:
    text = table(steps())
    readme.put_between(ROOT / "docs" / "search.md", MARKS, text)
    print(text)


def steps() -> list[Step]:
    """Supernet, search for each of the published sizes, fine-tuning and training from the beginning."""
    space = SearchSpace.read()
    costs = Costs(space)
    seconds = _seconds(costs)
    teacher = seconds(TEACHER)
    generator = random.Random(0)
    sizes = [costs(space.largest())["macs"], costs(space.smallest())["macs"]]
    drawn = mean(costs(space.sample(generator))["macs"] for _ in range(500))
    image = TRAINING * (seconds(sizes[0]) + seconds(sizes[1]) + 2 * seconds(drawn)) + teacher
    found = [
        Step(
            "supernet",
            f"{EPOCHS} epochs and those that cool down, by the sandwich rule: networks of {sizes[0]:.0f}, "
            f"{sizes[1]:.0f} and twice {drawn:.0f} M multiply-adds for each image, and the teacher",
            (EPOCHS + PRESETS["paper-300"].cooldown_epochs) * (1 - HOLD_OUT) * IMAGES * image / 3600,
        )
    ]
    for name, subnet in VARIANTS.items():
        evaluated = _slimmed(space, costs, costs(subnet), generator)
        hours = (HELD_OUT + CALIBRATION) * sum(map(seconds, evaluated)) / 3600
        found.append(
            Step(
                f"search, to the size of {name[-2:].strip('_').upper()}",
                f"{len(evaluated)} subnets on {HELD_OUT:,} images each, and {CALIBRATION:,} for statistics",
                hours,
                gpus=1,
            )
        )
    for name, preset in (("finetune", PRESETS["finetune"]), ("paper-300", PRESETS["paper-300"])):
        for variant in (next(iter(VARIANTS)), list(VARIANTS)[-1]):
            image = TRAINING * seconds(costs(VARIANTS[variant])["macs"]) + teacher
            epochs = preset.epochs + preset.cooldown_epochs
            what = f"`{name}`, a network of the size of {variant[-2:].strip('_').upper()}"
            found.append(Step(what, f"{epochs} epochs, and the teacher", epochs * IMAGES * image / 3600))
    return found


class _Seconds:
    """Of one image, by the multiply-adds of the network in millions."""

    def __init__(self, macs: list[float], seconds: list[float]) -> None:
        self._power, self._factor = np.polyfit(np.log(macs), np.log(seconds), 1)

    def __call__(self, macs: float) -> float:
        return float(np.exp(self._factor) * macs**self._power)


def _seconds(costs: Costs) -> _Seconds:
    macs = [costs(VARIANTS[f"efficientformerv2_{name}"])["macs"] for name in PUBLISHED]
    return _Seconds(macs, [1 / rate for rate in PUBLISHED.values()])


def _slimmed(
    space: SearchSpace, costs: Costs, limits: dict[str, float], generator: random.Random
) -> list[float]:
    """The multiply-adds of all subnets that slimming evaluates, by actions at random: which are not known."""
    now, evaluated = space.largest(), []
    while any(costs(now)[name] > limit for name, limit in limits.items()):
        actions = space.frontier(now)
        evaluated += [costs(action.architecture)["macs"] for action in actions]
        now = generator.choice(actions).architecture
    return evaluated


def table(found: list[Step]) -> str:
    lines = ["| step | what it is | GPU hours | hours |", "| --- | --- | ---: | ---: |"]
    for step in found:
        gpus = f"on {step.gpus} GPU{'s' * (step.gpus > 1)}"
        lines.append(f"| {step.name} | {step.how} | {step.hours:.1f} | {step.hours / step.gpus:.1f} {gpus} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
