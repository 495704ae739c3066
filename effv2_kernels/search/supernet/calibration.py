"""BatchNorm statistics made again for one network, from images.

A subnet of a supernet shares its BatchNorms with other subnets of the same widths, whose activations differ;
universally slimmable networks (Yu and Huang, arXiv 1903.05134, section 3.3) make them again before they
evaluate one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from effv2_kernels.errors import InputError


class _Pooled:
    """Mean and variance of all values that one BatchNorm has met, pooled in float64.

    Chan et al., "Updating formulae and a pairwise algorithm for computing sample variances", 1979: exact
    whatever the sizes of the batches, and the same in any order but for rounding.
    """

    def __init__(self, norm: _BatchNorm) -> None:
        self._norm = norm
        self._before = {name: t.clone() for name, t in norm.named_buffers()}
        norm.reset_running_stats()  # not even a NaN stays
        self._batches = 0
        self._count = 0
        self._mean = torch.zeros(norm.num_features, dtype=torch.float64)
        self._squares = torch.zeros(norm.num_features, dtype=torch.float64)

    def add(self, count: int) -> None:
        """What the BatchNorm holds now of a batch of so many values a channel."""
        assert self._norm.running_mean is not None
        assert self._norm.running_var is not None
        mean, variance = self._norm.running_mean.double().cpu(), self._norm.running_var.double().cpu()
        apart, total = mean - self._mean, self._count + count
        self._mean += apart * (count / total)
        self._squares += variance * (count - 1) + apart**2 * (self._count * count / total)
        self._count, self._batches = total, self._batches + 1

    def write(self) -> None:
        """Give the BatchNorm the pooled statistics, the variance unbiased as PyTorch keeps it."""
        for name, value in (
            ("running_mean", self._mean),
            ("running_var", self._squares / (self._count - 1)),
            ("num_batches_tracked", torch.tensor(self._batches)),
        ):
            getattr(self._norm, name).copy_(value)

    def restore(self) -> None:
        """Give it those that it had."""
        for name, value in self._before.items():
            getattr(self._norm, name).copy_(value)


@torch.no_grad()
def recalibrate(model: nn.Module, batches: Iterable[Tensor]) -> int:
    """Make the BatchNorm statistics of a network again, in one pass; returns the number of images.

    model: any; of a supernet, the BatchNorms of the selected subnet alone are changed, and nothing else of
    either. batches: images as the model takes them, at least two values a channel in every map.

    Within a batch every BatchNorm normalises with the statistics of the batch, as in training; what is kept
    is the mean and the variance over all images, independent of the order of batches but for rounding. No
    drop-path is active.

    Raises InputError where there are no images, or a batch too small; the statistics are then as before.
    """
    pooled: dict[_BatchNorm, _Pooled] = {}

    def begin(norm: nn.Module, inputs: tuple[Any, ...]) -> None:
        assert isinstance(norm, _BatchNorm)
        if inputs[0].numel() <= norm.num_features:
            raise InputError(
                f"statistics need two values a channel, but a map is {tuple(inputs[0].shape)}: give larger "
                f"batches."
            )
        if norm not in pooled:
            pooled[norm] = _Pooled(norm)

    def end(norm: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        assert isinstance(norm, _BatchNorm)
        pooled[norm].add(inputs[0].numel() // norm.num_features)

    images = 0
    try:
        with _measuring(model) as norms:
            hooks = [norm.register_forward_pre_hook(begin) for norm in norms]
            hooks += [norm.register_forward_hook(end) for norm in norms]
            try:
                for batch in batches:
                    model(batch)
                    images += len(batch)
            finally:
                for hook in hooks:
                    hook.remove()
        if not images:
            raise InputError("there are no images to make BatchNorm statistics from.")
    except BaseException:
        for one in pooled.values():
            one.restore()
        raise
    for one in pooled.values():
        one.write()
    return images


@contextmanager
def _measuring(model: nn.Module) -> Iterator[list[_BatchNorm]]:
    """All in eval mode but the BatchNorms, which take the statistics of each batch as they are."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    modes = [(module, module.training) for module in model.modules()]
    momenta = [(norm, norm.momentum) for norm in norms]
    try:
        model.eval()
        for norm in norms:
            norm.train()
            norm.momentum = 1.0
        yield norms
    finally:
        for module, training in modes:
            module.training = training
        for norm, momentum in momenta:
            norm.momentum = momentum
