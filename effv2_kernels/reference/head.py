"""The head: BatchNorm, mean over the map, and the mean of a classifier and a distillation classifier."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from effv2_kernels import blocks


def classify(x: Tensor, norm: nn.Module, classifiers: Sequence[nn.Module]) -> Tensor:
    """The trainable form: mean of classifiers(mean_{H, W}(norm(x))). x: (N, channels, H, W); y: (N, classes).

    A function of the modules, because timm's keys hold them flat in the model: norm, head, head_dist.
    """
    pooled = norm(x).mean(dim=(2, 3))
    logits: Tensor = classifiers[0](pooled)
    for classifier in classifiers[1:]:
        logits = logits + classifier(pooled)
    return logits / len(classifiers)


def head(x: Tensor, block: blocks.Head) -> Tensor:
    """The equation of ``blocks.Head``. x: (N, channels, H, W), any floating dtype; y: (N, classes)."""
    return F.linear(x.mean(dim=(2, 3)), block.linear.weight.to(x), block.linear.bias.to(x))
