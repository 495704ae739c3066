"""What tests of training train on: scikit-learn's digits as folders of pictures, and a tiny model."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("timm")
pytest.importorskip("torchmetrics")
pytest.importorskip("tensorboard")
pytest.importorskip("matplotlib")
pytest.importorskip("safetensors")

from effv2_kernels.families.efficientformer_v2 import Architecture, EfficientFormerV2
from effv2_kernels.train import (
    Classification,
    Recipe,
    Trainer,
    accuracy,
    open_data,
    train_loader,
    validation_loader,
)
from effv2_kernels.train.data import mixup
from effv2_kernels.train.run import Run

SIZE = 32
TESTS = Path(__file__).parent
# Of processes that tests start; see site/sitecustomize.py.
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": f"{TESTS / 'site'}{os.pathsep}{TESTS.parent}",
    "OMP_NUM_THREADS": "1",
}
ARCHITECTURE = Architecture((8, 8, 16, 16), (1, 1, 2, 1), 2, (1, 1))
# All that is random is on: order, augmentation, erasing, mixing, drop-path.
RECIPE = Recipe(
    epochs=3,
    batch=16,
    lr=0.1,
    warmup_epochs=1,
    cooldown_epochs=1,
    img_size=SIZE,
    repeats=0,
    ema_decay=0.9,
    drop_path=0.3,
    amp="none",
)
# What the same images give whoever computes them in whatever parts.
PLAIN = replace(
    RECIPE, auto_augment="", color_jitter=0.0, crop_scale=1.0, flip=0.0, erasing=0.0, mixup=0.0, cutmix=0.0
)


def write_digits(folder, train=64, validation=20, classes=10):
    """Pictures of 32x32 in folder/train/CLASS and folder/val/CLASS; returns the folder."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    chosen = [i for i in range(len(digits.target)) if digits.target[i] < classes][: train + validation]
    for number, i in enumerate(chosen):
        file = folder / ("train" if number < train else "val") / str(digits.target[i]) / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[i] * 15.9).astype("uint8")).resize((SIZE, SIZE)).save(file)
    return folder


def write_space(path):
    """A search space of 24 networks a stage and more, for these pictures; returns the path."""
    stage = {"widths": [8, 16], "depths": [1, 2], "ratios": [1, 2]}
    late = stage | {"attention_blocks": [0, 1]}
    space = {"img_size": [SIZE, SIZE], "in_channels": 3, "stages": [stage, stage, late, late]}
    path.write_text(json.dumps(space), encoding="utf-8")
    return path


def arguments(data, run, *more, command="train"):
    """A command that trains for a few seconds, as a list of words; the space lies beside the data."""
    options = {
        "--data": data,
        "--output": run,
        "--epochs": 4,
        "--batch": 16,
        "--img-size": SIZE,
        "--lr": 0.05,
        "--workers": 1,
        "--device": "cpu",
    }
    changes = ("warmup_epochs=1", "cooldown_epochs=0", "repeats=0", "amp=none", "ema_decay=0.9")
    sets = [word for change in (*changes, "drop_path=0.2") for word in ("--set", change)]
    if command == "supernet":
        options |= {"--space": data.with_name("space.json"), "--hold-out": 0.25, "--random-subnets": 1}
    return [command, *(str(word) for pair in options.items() for word in pair), *sets, *more]


def tiny_model(seed=0, classes=10, drop_path=RECIPE.drop_path):
    torch.manual_seed(seed)
    return EfficientFormerV2(ARCHITECTURE, img_size=SIZE, num_classes=classes, drop_path_rate=drop_path)


class Plain(nn.Sequential):
    """A network without BatchNorm, which sees the other images of a batch."""

    def __init__(self, seed=0):
        torch.manual_seed(seed)
        super().__init__(nn.Conv2d(3, 8, 4, 4), nn.GELU(), nn.Flatten(), nn.Linear(8 * 64, 10))


def make_trainer(
    folder, data, group, recipe=RECIPE, *, model=None, objective=None, resume=False, workers=0, **options
):
    """A trainer in a folder, on the pictures in ``data``, put together as the command does."""
    images = open_data(data)
    evaluated = validation_loader(images, recipe, group, workers=0, batch=32)
    return Trainer(
        tiny_model() if model is None else model,
        Classification(recipe) if objective is None else objective,
        recipe,
        train_loader(images, recipe, group, workers=workers),
        lambda candidate: accuracy(candidate, evaluated, images.classes, group),
        Run(folder, recipe, {"classes": images.classes}, resume=resume, writes=group.writes),
        group,
        mix=mixup(recipe, images.classes),
        **options,
    )


def same(a, b):
    """Whether two state dicts are equal, bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
