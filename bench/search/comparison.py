"""What a seed's networks are worth: accuracy of the optimised networks image by image, time, and size."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

import effv2_kernels
from bench.search.chain import SCALED, Chain
from bench.search.commands import Done
from effv2_kernels.families.efficientformer_v2 import Architecture, sizes
from effv2_kernels.progress import progress_bar
from effv2_kernels.replacing import replacing
from effv2_kernels.search.latency.timer import Timer
from effv2_kernels.search.latency.whole import whole_ratios
from effv2_kernels.train import Recipe, open_data, processes, validation_loader
from effv2_kernels.train.data import batches


def compare(chain: Chain, done: Mapping[str, Done], path: Path, *, rounds: int = 60) -> None:
    """Write all that the table of one seed needs, and what was done for it."""
    networks = chain.networks()
    (table,) = chain.costs.tables.values()
    times = _times(chain, networks, rounds)
    found: dict[str, Any] = {}
    for name, architecture in networks.items():
        metrics = chain.costs(architecture)
        correct = _correct(chain, name)
        found[name] = {
            "architecture": sizes(architecture),
            "metrics": metrics,
            "relative_times": times[name],
            "supernet_accuracy": _supernet_accuracy(chain, name),
            "top1": sum(correct) / len(correct),
            "correct": packed(correct),
            "images": len(correct),
        }
        if name != SCALED:
            found[name] |= {"evaluations": chain.evaluations(name), "candidates": _candidates(chain, name)}
    content = {
        "setting": chain.setting.name,
        "seed": chain.seed,
        "device": asdict(table.device),
        "budgets": chain.budgets(),
        "commands": {name: asdict(one) for name, one in done.items()},
        "networks": found,
    }
    with replacing(path) as part:
        part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _times(chain: Chain, networks: dict[str, Architecture], rounds: int) -> dict[str, dict[str, float]]:
    """How many times as long as the scaled S0 each takes, timed whole and in turns: median and quartiles."""
    setting, space = chain.setting, chain.space
    timer = Timer(
        space.img_size,
        in_channels=space.in_channels,
        classes=setting.classes,
        batch=setting.batch,
        threads=1,
    )
    with progress_bar() as progress:
        ratios = whole_ratios(
            timer,
            list(networks.values()),
            networks[SCALED],
            rounds=rounds,
            seed=chain.seed,
            progress=progress,
        )
    return {
        name: {"median": median(found), "quartiles": list(quantiles(found)[::2])}
        for name, found in zip(networks, ratios, strict=True)
    }


def _correct(chain: Chain, name: str) -> list[bool]:
    """Whether the optimised network is right, for every test image in order."""
    setting, space = chain.setting, chain.space
    model = effv2_kernels.create_model(
        architecture=chain.architecture(name),
        checkpoint=chain.weights(name),
        num_classes=setting.classes,
        img_size=space.img_size,
        in_channels=space.in_channels,
    )
    fast = effv2_kernels.optimize(model, threads=1)
    data = open_data(setting.data, dataset=setting.dataset, channels=space.in_channels)
    recipe = Recipe(
        img_size=space.img_size[0], crop=setting.fine_tuning["crop"], batch=250, mixup=0, cutmix=0
    )
    correct: list[bool] = []
    with processes("cpu") as group, torch.inference_mode():
        loader = validation_loader(data, recipe, group, workers=1, channels=space.in_channels)
        for images, classes in batches(loader):
            correct += (fast(images).argmax(1) == classes).tolist()
    return correct


def packed(correct: list[bool]) -> str:
    """Hexadecimal digits of four images each, the first image in the highest bit."""
    padded = [*correct, *([False] * (-len(correct) % 4))]
    return "".join(
        f"{int(''.join(str(int(bit)) for bit in padded[i : i + 4]), 2):x}" for i in range(0, len(padded), 4)
    )


def unpacked(text: str, images: int) -> list[bool]:
    """What ``packed`` was given."""
    bits = "".join(f"{int(digit, 16):04b}" for digit in text)
    return [bit == "1" for bit in bits[:images]]


def _supernet_accuracy(chain: Chain, name: str) -> float:
    """On held-out images, with the supernet's weights."""
    if name == SCALED:
        kept = json.loads((chain.folder / name / "accuracy.json").read_text(encoding="utf-8"))
        return float(kept["accuracy"])
    last = (chain.folder / name / "steps.jsonl").read_text(encoding="utf-8").splitlines()[-1]
    return float(json.loads(last)["chosen"]["accuracy"])


def _candidates(chain: Chain, name: str) -> list[tuple[float, float]]:
    """Predicted time and accuracy of every subnet that a search evaluated, for a picture."""
    _, *steps = (chain.folder / name / "steps.jsonl").read_text(encoding="utf-8").splitlines()
    met: dict[str, tuple[float, float]] = {}
    for line in steps:
        step = json.loads(line)
        for one in (step["chosen"], *step["options"]):
            point = round(one["metrics"]["latency"], 4), round(one["accuracy"], 4)
            met[json.dumps(one["architecture"])] = point
    return list(met.values())
