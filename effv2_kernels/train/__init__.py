"""Training: recipes, data, distillation, and a loop whose runs survive being killed.

The model that is trained is plain PyTorch, and no part of the engine is involved. Augmentation, mixing,
optimisers, schedules, averages and losses are timm's, metrics torchmetrics'. These packages are an extra,
``pip install 'effv2_kernels[search]'``; without them the names below raise UnavailableError. Recipes need
none.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from effv2_kernels.train import packages
from effv2_kernels.train.recipe import PRESETS, Recipe

if TYPE_CHECKING:
    from effv2_kernels.train.data import Data, open_data, train_loader, validation_loader
    from effv2_kernels.train.distillation import Teacher
    from effv2_kernels.train.distributed import Processes, processes
    from effv2_kernels.train.evaluation import accuracy
    from effv2_kernels.train.objective import Classification, Objective
    from effv2_kernels.train.trainer import Trainer

__all__ = [
    "PRESETS",
    "Classification",
    "Data",
    "Objective",
    "Processes",
    "Recipe",
    "Teacher",
    "Trainer",
    "accuracy",
    "open_data",
    "processes",
    "train_loader",
    "validation_loader",
]

_MODULES = {
    "Classification": "objective",
    "Data": "data",
    "Objective": "objective",
    "Processes": "distributed",
    "Teacher": "distillation",
    "Trainer": "trainer",
    "accuracy": "evaluation",
    "open_data": "data",
    "processes": "distributed",
    "train_loader": "data",
    "validation_loader": "data",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    packages.require()
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
