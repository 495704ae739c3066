"""Hyper-parameters, each with its source: a recipe is data, and says everything that decides a run's numbers.

Sources: "paper" is Li et al., arXiv 2212.08059, from this project's notes on it; "code" is main.py, models/
and util/ of github.com/snap-research/EfficientFormer at commit bb74cd3; "timm" is what timm 1.0 does unasked;
"here" is a choice of this project. docs/training.md has them as a table.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from effv2_kernels.errors import InputError, UnknownNameError

# Stochastic depth of the published models, of the paper and of models/efficientformer_v2.py there.
DROP_PATH = {
    "efficientformerv2_s0": 0.0,
    "efficientformerv2_s1": 0.0,
    "efficientformerv2_s2": 0.02,
    "efficientformerv2_l": 0.1,
}

AMP = ("none", "bf16", "fp16")
SCHEDULES = ("cosine", "poly", "tanh", "step")  # those of timm that need no more than this
CLIPPING = ("agc", "norm", "value")
INTERPOLATIONS = ("bicubic", "bilinear", "box", "hamming", "lanczos", "nearest")  # Pillow's
ERASING = ("pixel", "const", "rand")
# What counts and sizes may be at most, far beyond what anyone trains with: floats, timm and NumPy hold it.
MOST = 2**31 - 1
MOST_SEED = 2**63 - 1  # of torch.manual_seed, with a sign


def _value(default: Any, source: str) -> Any:
    return field(default=default, metadata={"source": source})


@dataclass(frozen=True)
class Recipe:
    """How to train. Rates of learning are per optimiser step, ``batch`` is of all processes together.

    ``batch`` images make one step, in ``accumulation`` parts on each process. ``lr``, ``warmup_lr`` and
    ``min_lr`` are of the schedule, which steps by epochs; ``lr`` is scaled by batch / ``lr_batch``. ``mixup``
    and ``cutmix`` are the alphas of their distributions, 0 for none. ``clip`` 0, ``ema_decay`` 0, ``erasing``
    0 and ``repeats`` 0 leave these out, ``auto_augment`` "" as well. ``drop_path`` below 0 is the model's
    published one. Raises InputError for values that are none.
    """

    # Length and optimiser
    epochs: int = _value(300, "paper")
    batch: int = _value(1024, "paper")
    accumulation: int = _value(1, "here: parts of a batch that are computed one after the other")
    optimizer: str = _value("adamw", "paper")
    lr: float = _value(1e-3, "paper")
    lr_batch: int = _value(1024, "paper; scaled linearly, as in the code")
    weight_decay: float = _value(0.025, "paper")
    eps: float = _value(1e-8, "code")
    schedule: str = _value("cosine", "paper")
    warmup_epochs: int = _value(5, "paper")
    warmup_lr: float = _value(1e-5, "code")
    min_lr: float = _value(1e-5, "code")
    cooldown_epochs: int = _value(10, "code; at min_lr, after the others")
    clip: float = _value(0.01, "paper")
    clip_mode: str = _value("agc", "paper: adaptive gradient clipping")
    # Images
    img_size: int = _value(224, "paper")
    crop: float = _value(0.95, "timm, for these weights; the code evaluates at 0.875")
    interpolation: str = _value("bicubic", "code")
    color_jitter: float = _value(0.4, "code; without effect where auto_augment has one, as there")
    auto_augment: str = _value("rand-m9-mstd0.5-inc1", "paper; of grey pictures none is used")
    crop_scale: float = _value(0.08, "timm: the least area of a random crop")
    flip: float = _value(0.5, "timm")
    erasing: float = _value(0.25, "paper")
    erasing_mode: str = _value("pixel", "code")
    repeats: int = _value(3, "code: repeated augmentation, a third of the images an epoch, each three times")
    mixup: float = _value(0.8, "paper")
    cutmix: float = _value(1.0, "paper")
    mix_prob: float = _value(1.0, "code")
    mix_switch_prob: float = _value(0.5, "code")
    smoothing: float = _value(0.1, "paper")
    # Regularisation, averaging, distillation
    drop_path: float = _value(-1.0, "code: 0, 0, 0.02 and 0.1 for S0, S1, S2 and L")
    ema_decay: float = _value(0.99996, "code")
    ema_warmup: bool = _value(False, "here: timm's warm-up of the decay, for runs of few steps")
    alpha: float = _value(0.5, "paper: the share of the teacher in the loss, by hard labels")
    teacher: str = _value("", "here: no teacher unless named; the paper's is regnety_160.deit_in1k")
    # How it is computed
    sync_norms: bool = _value(True, "code: BatchNorm over all GPUs; not on CPUs, where PyTorch has none")
    amp: str = _value("bf16", "here; the code trains in fp32")
    compile: bool = _value(False, "here: torch.compile")
    channels_last: bool = _value(False, "here: faster, most of all on CPUs, and other bits")
    seed: int = _value(0, "code")

    def __post_init__(self) -> None:
        def must(holds: bool, what: str) -> None:
            if not holds:
                raise InputError(f"wrong recipe: {what}.")

        self._check_integers(must)
        for name in ("lr", "eps"):
            must(getattr(self, name) > 0, f"{name} must be positive, but is {getattr(self, name)}")
        for name in ("weight_decay", "warmup_lr", "min_lr", "clip", "mixup", "cutmix", "color_jitter"):
            must(getattr(self, name) >= 0, f"{name} must not be negative, but is {getattr(self, name)}")
        for name in ("erasing", "flip", "mix_prob", "mix_switch_prob", "alpha"):
            must(0 <= getattr(self, name) <= 1, f"{name} must be in 0 ... 1, but is {getattr(self, name)}")
        for name in ("smoothing", "ema_decay"):
            value = getattr(self, name)
            must(0 <= value < 1, f"{name} must be at least 0 and below 1, but is {value}")
        for name in ("crop", "crop_scale"):
            value = getattr(self, name)
            must(0 < value <= 1, f"{name} must be above 0 and at most 1, but is {value}")
        must(self.drop_path < 1, f"drop_path must be below 1, but is {self.drop_path}")
        for entry in fields(self):  # what has no upper bound above
            value = getattr(self, entry.name)
            must(
                not isinstance(value, float) or math.isfinite(value),
                f"{entry.name} must be finite, but is {value}",
            )
        must(
            self.warmup_epochs < self.epochs,
            f"{self.warmup_epochs} warm-up epochs of {self.epochs} epochs leave none to train in",
        )
        for name, known in (
            ("schedule", SCHEDULES),
            ("amp", AMP),
            ("clip_mode", CLIPPING),
            ("interpolation", INTERPOLATIONS),
            ("erasing_mode", ERASING),
        ):
            value = getattr(self, name)
            must(value in known, f"{name} is one of {', '.join(known)}, but is {value!r}")

    def _check_integers(self, must: Callable[[bool, str], None]) -> None:
        for name in ("epochs", "batch", "accumulation", "lr_batch", "img_size"):
            must(getattr(self, name) >= 1, f"{name} must be at least 1, but is {getattr(self, name)}")
            must(getattr(self, name) <= MOST, f"{name} must be at most {MOST}, but is {getattr(self, name)}")
        for name, most in (
            ("warmup_epochs", MOST),
            ("cooldown_epochs", MOST),
            ("repeats", MOST),
            ("seed", MOST_SEED),
        ):
            must(getattr(self, name) >= 0, f"{name} must not be negative, but is {getattr(self, name)}")
            must(getattr(self, name) <= most, f"{name} must be at most {most}, but is {getattr(self, name)}")

    @classmethod
    def named(cls, name: str) -> Recipe:
        """A preset. Raises UnknownNameError for another name."""
        if name not in PRESETS:
            raise UnknownNameError.of("recipe", name, PRESETS)
        return PRESETS[name]

    def changed(self, settings: Mapping[str, str]) -> Recipe:
        """With other values, as a command line gives them: text. Raises UnknownNameError and InputError."""
        known = {entry.name: entry.default for entry in fields(self)}
        values: dict[str, Any] = {}
        for name, text in settings.items():
            if name not in known:
                raise UnknownNameError.of("entry of a recipe", name, known)
            values[name] = _parsed(name, text, known[name])
        return replace(self, **values)

    def drop_path_of(self, model: str) -> float:
        """The drop-path rate for a model of this name: its published one where the recipe leaves it open."""
        return DROP_PATH.get(model, 0.0) if self.drop_path < 0 else self.drop_path

    def micro_batch(self, processes: int) -> int:
        """Images that one process computes at once. Raises InputError where the batch does not divide so."""
        parts = processes * self.accumulation
        if self.batch % parts or (self.mixes and self.batch // parts % 2):
            raise InputError(
                f"a batch of {self.batch} does not divide into {processes} processes x {self.accumulation} "
                f"parts{' of an even number of images, which mixup and cutmix need' if self.mixes else ''}: "
                f"give a multiple of {parts * (2 if self.mixes else 1)}."
            )
        return self.batch // parts

    @property
    def mixes(self) -> bool:
        """Whether images are mixed."""
        return self.mixup > 0 or self.cutmix > 0

    def as_dict(self) -> dict[str, Any]:
        """Plain values by name, for JSON and checkpoints."""
        return asdict(self)

    def json(self) -> str:
        """As a file."""
        return json.dumps(self.as_dict(), indent=1) + "\n"


def sources() -> dict[str, tuple[Any, str]]:
    """The published value of every entry, and its source."""
    return {entry.name: (entry.default, entry.metadata["source"]) for entry in fields(Recipe)}


def _parsed(name: str, text: str, default: Any) -> Any:
    kind = type(default)
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise InputError(f"{name} is true or false, but got {text!r}.")
        return text.lower() == "true"
    try:
        return kind(text)
    except ValueError as error:
        expected = {"int": "a whole number", "float": "a number"}[kind.__name__]
        raise InputError(f"{name} is {expected}, but got {text!r}.") from error


PRESETS = {
    "paper-300": Recipe(),
    "paper-450": Recipe(epochs=450),
    # Chosen here, as nothing is published of it: a tenth of the epochs and of the rate, no second warm-up.
    "finetune": Recipe(
        epochs=30, lr=1e-4, min_lr=1e-6, warmup_epochs=0, cooldown_epochs=0, repeats=0, ema_decay=0.9998
    ),
}
