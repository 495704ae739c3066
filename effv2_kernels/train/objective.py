"""What a step of training minimises."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

import timm.loss
from torch import Tensor, nn

from effv2_kernels.train.distillation import Teacher
from effv2_kernels.train.recipe import Recipe

Autocast = Callable[[], AbstractContextManager[object]]
Scale = Callable[[Tensor], Tensor]


class Objective(Protocol):
    """What the trainer calls for each part of a batch.

    It runs forward and backward by itself, as often as it needs, so that a supernet can train several subnets
    in one step.
    """

    def backward(
        self, model: nn.Module, images: Tensor, targets: Tensor, autocast: Autocast, scale: Scale
    ) -> dict[str, float]:
        """Add the gradients of this part of a batch to the parameters, and return its losses by name.

        model: in training mode; wrapped for several processes, where its attributes are behind ``.module``.
        images: (N, C, H, W) float32, normalised and mixed. targets: (N,) int64 classes, or (N, classes)
        float32 where images are mixed. autocast: ``with autocast():`` around forward and loss. scale: what
        every loss passes before its ``backward()``: it is divided by the parts of a batch and, in fp16, made
        larger.

        The trainer stops where one of the losses is not finite; "loss" is the one it shows.
        """


class Classification:
    """Cross entropy with the targets, and with a teacher's decisions where there is one.

    loss = (1 - alpha) CE(classifier, targets) + alpha CE(distillation classifier, argmax of the teacher), the
    hard distillation of DeiT (Touvron et al., arXiv 2012.12877, equation 3). The targets' part is timm's:
    soft targets where images are mixed (smoothed there), else label smoothing. A temperature has no effect on
    hard labels.
    """

    def __init__(self, recipe: Recipe, teacher: Teacher | None = None) -> None:
        self.teacher = teacher
        self.alpha = recipe.alpha
        self.criterion: nn.Module = (
            timm.loss.SoftTargetCrossEntropy()
            if recipe.mixes
            else timm.loss.LabelSmoothingCrossEntropy(recipe.smoothing)
            if recipe.smoothing
            else nn.CrossEntropyLoss()
        )

    def backward(
        self, model: nn.Module, images: Tensor, targets: Tensor, autocast: Autocast, scale: Scale
    ) -> dict[str, float]:
        with autocast():
            labels = None if self.teacher is None else self.teacher.labels(images)
            logits = model(images)
            losses: dict[str, Tensor] = {}
            if labels is None:
                loss = self.criterion(logits, targets)
            else:
                # Without a classifier of its own for it, the only one learns from both.
                plain, distilled = logits if isinstance(logits, tuple) else (logits, logits)
                losses["target_loss"] = self.criterion(plain, targets)
                losses["teacher_loss"] = nn.functional.cross_entropy(distilled, labels)
                loss = (1 - self.alpha) * losses["target_loss"] + self.alpha * losses["teacher_loss"]
        scale(loss).backward()
        return {name: float(value.detach()) for name, value in {"loss": loss, **losses}.items()}
