"""The sandwich rule: how one step trains a supernet.

The largest subnet learns from the labels, the smallest and some random ones from the largest one's soft
logits: universally slimmable networks, Yu and Huang, arXiv 1903.05134, sections 3.2 and 3.3 (there: "inplace
distillation"); EfficientFormerV2 trains its supernet by the same rule.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from effv2_kernels.errors import ModelError
from effv2_kernels.families.efficientformer_v2.architecture import Architecture
from effv2_kernels.search.space.space import SearchSpace
from effv2_kernels.search.supernet.supernet import Supernet

Criterion = Callable[[Tensor, Tensor], Tensor]


class Teacher(Protocol):
    """What the largest subnet learns from beside the labels."""

    def labels(self, images: Tensor) -> Tensor:
        """(N,) int64: its decisions on images (N, C, H, W)."""


class Sandwich:
    """An objective: each call adds the gradients of the largest, the smallest and some random subnets.

    criterion: (logits (N, classes), targets) -> loss of the largest. teacher: hard distillation for the
    largest, loss = (1 - alpha) criterion + alpha CE(distillation classifier, the teacher's decisions), DeiT's
    (arXiv 2012.12877); for the two classifiers to learn apart, call ``set_distilled_training()`` of the
    supernet. temperature: of the soft logits. random_subnets: how many beside the largest and the smallest.

    The random ones are drawn from ``seed`` and ``step``, which counts the calls: a resumed run that sets
    ``step`` (or calls ``load_state_dict``) draws what an uninterrupted one draws, and so does every process.

    Raises ModelError for options that make no sense.
    """

    def __init__(
        self,
        criterion: Criterion,
        *,
        teacher: Teacher | None = None,
        alpha: float = 0.5,
        temperature: float = 1.0,
        random_subnets: int = 2,
        seed: int = 0,
    ) -> None:
        if not 0 <= alpha <= 1 or temperature <= 0 or random_subnets < 0:
            raise ModelError(
                f"alpha must be from 0 to 1, the temperature positive, random_subnets not negative; got "
                f"alpha={alpha}, temperature={temperature}, random_subnets={random_subnets}."
            )
        self.criterion = criterion
        self.teacher = teacher
        self.alpha = alpha
        self.temperature = temperature
        self.random_subnets = random_subnets
        self.seed = seed
        self.step = 0

    def state_dict(self) -> dict[str, int]:
        """What a resumed run needs."""
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where the state was taken."""
        self.step = state["step"]

    def smaller(self, space: SearchSpace, step: int) -> list[Architecture]:
        """The subnets beside the largest that a step trains, the smallest first."""
        generator = random.Random(f"{self.seed}, step {step}")
        return [space.smallest(), *(space.sample(generator) for _ in range(self.random_subnets))]

    def backward(
        self,
        model: nn.Module,
        images: Tensor,
        targets: Tensor,
        autocast: Callable[[], AbstractContextManager[object]],
        scale: Callable[[Tensor], Tensor],
    ) -> dict[str, float]:
        """Add the gradients of all subnets of this step to the parameters, and return their losses by name.

        model: a Supernet in training mode, or DistributedDataParallel around one. images: (N, C, H, W).
        targets: as the criterion takes them. autocast: ``with autocast():`` around forward and loss. scale:
        what every loss passes before its ``backward()``. Each subnet's graph is freed before the next one's,
        so that the memory is that of the largest. Afterwards the subnet is selected that was before.

        The losses: "loss" of the largest, with a teacher also its parts, and the divergences "smallest_loss"
        and "random_loss" (mean) from the largest's soft logits.
        """
        supernet = model.module if isinstance(model, DistributedDataParallel) else model
        if not isinstance(supernet, Supernet):
            raise ModelError(f"the sandwich rule trains a Supernet, but got {type(supernet).__name__}.")
        smaller = self.smaller(supernet.space, self.step)
        self.step += 1
        with _averaging(model):
            with supernet.selecting(supernet.space.largest()):
                with autocast():
                    logits = _logits(model(images))
                    losses = self._of_largest(logits, images, targets)
                scale(losses["loss"]).backward()
            soft = [each.detach() for each in logits]
            divergences = []
            for architecture in smaller:
                with supernet.selecting(architecture):
                    with autocast():
                        divergence = self._divergence(_logits(model(images)), soft)
                    scale(divergence).backward()
                divergences.append(float(divergence.detach()))
        found = {name: float(value.detach()) for name, value in losses.items()}
        found["smallest_loss"] = divergences[0]
        if self.random_subnets:
            found["random_loss"] = sum(divergences[1:]) / self.random_subnets
        return found

    def _of_largest(self, logits: Sequence[Tensor], images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        if self.teacher is None:
            return {"loss": self.criterion(logits[0], targets)}
        target_loss = self.criterion(logits[0], targets)
        teacher_loss = F.cross_entropy(logits[-1], self.teacher.labels(images))
        loss = (1 - self.alpha) * target_loss + self.alpha * teacher_loss
        return {"loss": loss, "target_loss": target_loss, "teacher_loss": teacher_loss}

    def _divergence(self, logits: Sequence[Tensor], soft: Sequence[Tensor]) -> Tensor:
        """KL(largest || subnet) at the temperature, mean over images and classifiers.

        Times the temperature's square, so that it does not change how large the gradients are (Hinton et al.,
        arXiv 1503.02531).
        """
        total = torch.zeros((), device=logits[0].device)
        for mine, theirs in zip(logits, soft, strict=True):
            mine, theirs = ((t if t.dtype == torch.float64 else t.float()) for t in (mine, theirs))
            expected = (theirs / self.temperature).log_softmax(1)
            given = (mine / self.temperature).log_softmax(1)
            total = total + F.kl_div(given, expected, reduction="batchmean", log_target=True)
        return total * (self.temperature**2 / len(logits))


def _logits(outputs: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Of both classifiers where the supernet trains them apart, else the one mean."""
    return outputs if isinstance(outputs, tuple) else (outputs,)


@contextmanager
def _averaging(model: nn.Module) -> Iterator[None]:
    """Within it gradients add up; at its end they are averaged over all processes, once for all subnets.

    DistributedDataParallel's own averaging fires in every backward pass and waits for every parameter, while
    each pass here leaves some out: the BatchNorms of other widths, and blocks. Every process draws the same
    subnets, so that the same parameters have gradients everywhere; the others' stay None, and no optimiser
    moves them. In ``no_sync()``, between the parts of a batch, nothing is averaged yet.
    """
    if not isinstance(model, DistributedDataParallel):
        yield
        return
    last = model.require_backward_grad_sync
    with model.no_sync():
        yield
    if not last:
        return
    group = model.process_group
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    for dtype in dict.fromkeys(g.dtype for g in gradients):
        same = [g for g in gradients if g.dtype == dtype]
        flat = torch.cat([g.flatten() for g in same])
        distributed.all_reduce(flat, group=group)
        flat /= distributed.get_world_size(group)
        for g, averaged in zip(same, flat.split([g.numel() for g in same]), strict=True):
            g.copy_(averaged.view_as(g))
