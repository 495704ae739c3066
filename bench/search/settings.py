"""What a study is made of: its images, its space, and how long everything is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

# Of small grey images, for a few epochs; the published values are for 300 epochs of photographs.
_RECIPE = {
    "lr_batch": 128,
    "warmup_lr": 1e-4,
    "min_lr": 1e-5,
    "cooldown_epochs": 0,
    "weight_decay": 0.05,
    "repeats": 0,
    "ema_decay": 0,
    "mixup": 0,
    "cutmix": 0,
    "erasing": 0.1,
    "crop_scale": 0.7,
    "crop": 1.0,
    "color_jitter": 0,
    "amp": "none",
    "channels_last": True,
}


@dataclass(frozen=True)
class Setting:
    """A study. Values of recipes are those of ``train --set``.

    data, dataset: as ``--data`` and ``--dataset``. space: a name or a file. supernet, fine_tuning: recipes.
    width, depth: by which S0 is scaled uniformly; what it then takes is the budget of all. batch: images in
    a call that is timed. held_out, calibration: images for a search. processes: that train a supernet.
    size: the most parameters, in those of the scaled S0. least_drop: of ``search``. of: whose supernet and
    latency table are used; none is its own.
    """

    name: str
    data: Path
    dataset: str
    space: str
    classes: int
    width: float
    depth: float
    supernet: Mapping[str, Any]
    fine_tuning: Mapping[str, Any]
    batch: int = 32
    held_out: int = 3000
    calibration: int = 500
    hold_out: float = 0.1
    processes: int = 2
    rounds: int = 40
    in_channels: int = 1
    layer_scale: float = 0.1
    size: float = 1.0
    least_drop: float = 0.0
    of: str = ""


_FASHION = Setting(
    "fashion",
    data=ROOT / "build" / "fashion-mnist",
    dataset="torch/fashion_mnist",
    space="fashion",
    classes=10,
    width=0.375,
    depth=0.5,
    supernet={**_RECIPE, "epochs": 6, "batch": 128, "lr": 1e-3, "warmup_epochs": 1, "smoothing": 0.1},
    fine_tuning={**_RECIPE, "epochs": 5, "batch": 128, "lr": 5e-4, "warmup_epochs": 0, "smoothing": 0},
)
SETTINGS = {
    "fashion": _FASHION,
    # Why the searches of "fashion" end where they do: with rises that count, with less time, with less size,
    # with less noise.
    "fashion-rises": replace(_FASHION, name="fashion-rises", of="fashion", least_drop=-1.0),
    "fashion-fast": replace(_FASHION, name="fashion-fast", of="fashion", width=0.3, depth=0.25),
    "fashion-small": replace(_FASHION, name="fashion-small", of="fashion", size=0.5),
    "fashion-images": replace(_FASHION, name="fashion-images", of="fashion", held_out=6000),
    # The whole chain in miniature, for tests: it proves that everything fits together, and nothing else.
    "digits": Setting(
        "digits",
        data=ROOT / "build" / "digits",
        dataset="",
        space=str(Path(__file__).with_name("digits.json")),
        classes=10,
        width=0.25,
        depth=0.25,
        supernet={**_RECIPE, "epochs": 2, "batch": 64, "lr": 2e-3, "warmup_epochs": 1, "smoothing": 0.1},
        fine_tuning={**_RECIPE, "epochs": 1, "batch": 64, "lr": 5e-4, "warmup_epochs": 0, "smoothing": 0},
        batch=4,
        held_out=100,
        calibration=64,
        processes=1,
        rounds=3,
    ),
}
