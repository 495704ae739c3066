"""How accurate a subnet of a supernet is: always on the same images, and never asked twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

import effv2_kernels
from effv2_kernels import fields
from effv2_kernels.checkpoint import identity
from effv2_kernels.errors import SearchError
from effv2_kernels.families.efficientformer_v2 import Architecture, sizes
from effv2_kernels.families.efficientformer_v2.model import EfficientFormerV2
from effv2_kernels.search.images import Images
from effv2_kernels.search.journal import Journal
from effv2_kernels.search.supernet.calibration import recalibrate
from effv2_kernels.search.supernet.supernet import Supernet


class Evaluator(Protocol):
    """What says how accurate a subnet is."""

    @property
    def identity(self) -> str:
        """Another text where accuracies are of something else: of other weights or other images."""

    def accuracy(self, architecture: Architecture) -> float:
        """The share of images that it is right about, from 0 to 1: the same whenever it is asked."""


class SupernetEvaluator:
    """Accuracies of the subnets of a supernet, top-1 on held-out images.

    Of each subnet the BatchNorm statistics are made again, from the same training images; the supernet stays
    as it is. The networks run where the supernet's weights are, and in their dtype: in fp32 on a CPU through
    ``optimize``, which is several times as fast and takes the same classes. Other devices and dtypes
    decide otherwise about some images, so that their accuracies have another identity.
    """

    def __init__(self, supernet: Supernet, images: Images) -> None:
        self.supernet, self.images = supernet, images
        like = next(supernet.parameters())
        # Not of fp32 on CPUs, so that earlier files of theirs are gone on with.
        by = "" if _through_optimize(like) else f", by {like.device.type} in {like.dtype}"
        self.identity = f"supernet {_digest(supernet)} on {images.identity}{by}"

    def accuracy(self, architecture: Architecture) -> float:
        """Raises InputError without training images, SearchError without held-out ones."""
        model: nn.Module = self.calibrated(architecture)
        like = next(model.parameters())
        if _through_optimize(like):
            model = effv2_kernels.optimize(model)
        right, count = 0, 0
        with torch.inference_mode():
            for images, classes in self.images.held_out():
                found = model(images.to(like)).argmax(1)
                right += int((found == classes.to(like.device)).sum())
                count += len(images)
        if not count:
            raise SearchError("there are no held-out images: give some that the supernet was not trained on.")
        return right / count

    def calibrated(self, architecture: Architecture) -> EfficientFormerV2:
        """A subnet as a model of its own, with BatchNorm statistics of its own, in eval mode."""
        model = self.supernet.subnet(architecture)
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # faster on CPUs
        like = next(model.parameters())
        images = (each.to(like, memory_format=torch.channels_last) for each in self.images.calibration())
        recalibrate(model, images)
        return model


def _through_optimize(weights: Tensor) -> bool:
    return weights.device.type == "cpu" and weights.dtype == torch.float32


def _digest(supernet: Supernet) -> str:
    """Of the weights, and of what they are the weights of."""
    text = f"{supernet.space.to_json()}{identity.digest(supernet)}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Remembered:
    """An evaluator that asks another one once for each subnet, and keeps the answers in a file.

    A search is determined by its seed and by the accuracies that it meets. So one that was killed is simply
    begun again: up to where it was it meets remembered accuracies, and takes the same way in no time.

    The file is this process's until ``close()``. remedy: what to do, beside removing it, where it is of
    something else, damaged, or another process's, which is a SearchError.
    """

    def __init__(
        self, evaluator: Evaluator, path: Path, *, remedy: str = "choose another file of accuracies"
    ) -> None:
        self._evaluator = evaluator
        self.identity = evaluator.identity
        about = {"effv2_evaluations": 1, "evaluator": evaluator.identity}
        self._journal = Journal(path, about, remedy=remedy)
        self.close = self._journal.close
        self._known = dict(map(self._remembered, self._journal.records))

    def _remembered(self, record: Mapping[str, Any]) -> tuple[str, float]:
        accuracy = record.get("accuracy")
        # Of NaN this is not true either.
        if not isinstance(accuracy, (int, float)) or not 0 <= accuracy <= 1:
            raise self._journal.damaged(f"an accuracy must be from 0 to 1, but is {fields.shown(accuracy)}")
        if "architecture" not in record:
            raise self._journal.damaged("an accuracy is of no architecture")
        return _key(record["architecture"]), float(accuracy)

    def __len__(self) -> int:
        return len(self._known)

    def accuracy(self, architecture: Architecture) -> float:
        """As of the other one. Raises SearchError where the file cannot be written."""
        described = sizes(architecture)
        key = _key(described)
        if key not in self._known:
            accuracy = self._evaluator.accuracy(architecture)
            self._journal.add({"architecture": described, "accuracy": accuracy})
            self._known[key] = accuracy
        return self._known[key]


_key: Callable[[object], str] = json.dumps
