"""Top-1 and top-5 of a model on images of known classes, by torchmetrics."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset
from torchmetrics.classification import MulticlassAccuracy

from effv2_kernels.errors import InputError
from effv2_kernels.train.data import batches
from effv2_kernels.train.distributed import Processes

METRICS = ("top1", "top5")


class Accuracy:
    """Counts of one evaluation over all processes: top-1, and top-5 (of all, where classes are fewer)."""

    def __init__(self, classes: int, device: torch.device) -> None:
        self._metrics = {
            name: MulticlassAccuracy(classes, top_k=min(k, classes), average="micro").to(device)
            for name, k in zip(METRICS, (1, 5), strict=True)
        }

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """logits: (N, classes); targets: (N,) int64."""
        for metric in self._metrics.values():
            metric.update(logits, targets)

    def compute(self) -> dict[str, float]:
        """Shares of all images of all processes, in 0 ... 1."""
        return {name: float(metric.compute()) for name, metric in self._metrics.items()}


@torch.no_grad()
def accuracy(model: nn.Module, loader: Any, classes: int, processes: Processes) -> dict[str, float]:
    """{"top1", "top5"}: shares of the images of all processes, in 0 ... 1. The model is left in eval mode."""
    model.eval()
    counts = Accuracy(classes, processes.device)
    for images, targets in own_share(loader, processes):
        logits = model(images)
        if logits.shape[1] != classes:
            raise InputError(f"the model tells {logits.shape[1]} classes apart, and the data has {classes}.")
        counts.update(logits, targets)
    return counts.compute()


def own_share(loader: Any, processes: Processes) -> Any:
    """Batches without the images that timm's sampler repeats so that every process has equally many."""
    if isinstance(loader.dataset, IterableDataset):
        yield from batches(loader)
        return
    left = -(-(len(loader.dataset) - processes.rank) // processes.count)
    for images, targets in batches(loader):
        if left <= 0:
            return
        yield images[:left], targets[:left]
        left -= len(images)
