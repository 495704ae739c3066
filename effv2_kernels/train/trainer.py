"""The loop: epochs of steps, their evaluation, and a checkpoint behind each.

Everything random in epoch e, which is the order of the images, augmentation, mixing, drop-path and the seeds
of loading processes, follows from (seed, e). A run that was killed goes on from its last whole epoch, and on
CPUs, in one process, ends with the weights of one that was not, bit for bit.
"""

from __future__ import annotations

import difflib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3, dispatch_clip_grad, distribute_bn, random_seed
from torch import Tensor, nn
from torchmetrics import MeanMetric

from effv2_kernels.engine import Progress
from effv2_kernels.errors import TrainingError, UnknownNameError
from effv2_kernels.train import state
from effv2_kernels.train.data import batches, set_epoch
from effv2_kernels.train.distributed import Processes
from effv2_kernels.train.objective import Objective
from effv2_kernels.train.recipe import Recipe
from effv2_kernels.train.run import Run

Evaluate = Callable[[nn.Module], Mapping[str, float]]
Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
_AMP = {"none": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def epoch_seed(seed: int, epoch: int) -> int:
    """What everything random in an epoch follows from, below 2^31; neighbours are as far apart as others."""
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0]) >> 1


class Trainer:
    """A run in a folder.

    model: any module, on the CPU; it is moved to the device of ``processes``. objective: what a step
    minimises. loader: batches (images, classes) for an epoch; ``data.train_loader`` makes one. evaluate:
    numbers by name of a model in eval mode, "top1" among them, which decides which weights are best; called
    for the model and for the average of its weights (EMA) where there is one. mix: ``data.mixup``. run: the
    folder; where it holds a checkpoint, the trainer begins behind its last epoch; an objective with a
    state_dict() is kept there, too. unused_parameters: see ``Processes.wrapped``.

    What is between two checkpoints is lost with a crash, and nothing else. Raises TrainingError where a loss
    is not finite, a checkpoint does not fit or cannot be written, or processes found different ones,
    InputError for an image that cannot be read.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        recipe: Recipe,
        loader: Any,
        evaluate: Evaluate,
        run: Run,
        processes: Processes,
        *,
        mix: Mix | None = None,
        unused_parameters: bool = False,
    ) -> None:
        self.recipe, self.objective, self.loader, self.mix = recipe, objective, loader, mix
        self.evaluate, self.run, self.processes = evaluate, run, processes
        self._require_one_run()
        self._layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
        self.model = model.to(processes.device)
        if recipe.channels_last:
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.ema = (
            ModelEmaV3(self.model, decay=recipe.ema_decay, use_warmup=recipe.ema_warmup)
            if recipe.ema_decay
            else None
        )
        self.optimizer = _optimizer(self.model, recipe)
        self.schedule, self.epochs = create_scheduler_v2(
            self.optimizer,
            sched=recipe.schedule,
            num_epochs=recipe.epochs,
            warmup_epochs=recipe.warmup_epochs,
            warmup_lr=recipe.warmup_lr,
            min_lr=recipe.min_lr,
            cooldown_epochs=recipe.cooldown_epochs,
        )
        self.scaler = torch.amp.GradScaler(processes.device.type, enabled=recipe.amp == "fp16")
        self.updates = 0
        run.restore(self._parts())
        self.updates = run.updates
        wrapped = self.model
        if recipe.sync_norms and processes.count > 1 and processes.device.type == "cuda":
            wrapped = self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        if recipe.compile:
            self.model.compile()
        self.wrapped = processes.wrapped(wrapped, unused_parameters=unused_parameters)

    def fit(
        self,
        progress: Progress = lambda what, share: None,
        report: Callable[[Mapping[str, float]], None] = lambda row: None,
    ) -> dict[str, float]:
        """Train until the last epoch, and return its row of the log; report is given each one."""
        with _reproducible(self.processes.device):
            for epoch in range(self.run.epoch, self.epochs):
                started = time.perf_counter()
                random_seed(epoch_seed(self.recipe.seed, epoch), self.processes.rank)
                row = {"epoch": epoch + 1, "lr": self.optimizer.param_groups[0]["lr"]}
                row |= self._train(epoch, progress)
                self.schedule.step(epoch + 1)
                progress(f"epoch {epoch + 1}: evaluating", (epoch + 1) / self.epochs)
                row |= self._evaluate()
                row["seconds"] = time.perf_counter() - started
                self.run.updates = self.updates
                self.run.finish_epoch(
                    row, self.model, None if self.ema is None else self.ema.module, self._parts()
                )
                report(row)
                self.processes.barrier()
        return dict(self.run.rows[-1])

    def _require_one_run(self) -> None:
        """Each process looks for a checkpoint by itself, and all have to find the same one."""
        first, *others = self.processes.gathered(self.run.begins)
        for rank, other in enumerate(others, 1):
            differing = state.differences(first, other, now="there")
            if differing:
                raise TrainingError(
                    f"process {rank} does not begin as process 0 does: {'; '.join(differing)}. Start "
                    f"all with the same options, and with '{self.run.folder}' on a disk that all share."
                )

    def _parts(self) -> dict[str, Any]:
        """What a checkpoint holds beside the run's own numbers, by the names that readers of weights know."""
        parts = {
            "state_dict": self.model,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "scaler": self.scaler,
        }
        if hasattr(self.objective, "state_dict"):
            parts["objective"] = self.objective
        return parts if self.ema is None else {**parts, "state_dict_ema": self.ema.module}

    def _train(self, epoch: int, progress: Progress) -> dict[str, float]:
        self.wrapped.train()
        set_epoch(self.loader, epoch_seed(self.recipe.seed, epoch))
        losses = self._steps(epoch, len(self.loader) // self.recipe.accumulation, progress)
        if self.processes.count > 1:
            for model in (self.model, self.ema.module if self.ema is not None else None):
                if model is not None:
                    distribute_bn(model, self.processes.count, reduce=True)
        return losses

    def _steps(self, epoch: int, steps: int, progress: Progress) -> dict[str, float]:
        parts = self.recipe.accumulation
        means: dict[str, MeanMetric] = {}
        self.optimizer.zero_grad()
        for number, (images, targets) in enumerate(batches(self.loader)):
            if number == steps * parts:
                break  # the rest does not fill a batch
            whole = (number + 1) % parts == 0
            if self.mix is not None:
                images, targets = self.mix(images, targets)
            images = images.contiguous(memory_format=self._layout)
            with self._synchronised(whole):
                found = self.objective.backward(self.wrapped, images, targets, self._autocast, self._scale)
            step = number // parts
            self._check(found, epoch, step)
            for name, value in found.items():
                means.setdefault(name, MeanMetric().to(self.processes.device)).update(value)
            if whole:
                self._step()
                progress(
                    f"epoch {epoch + 1}/{self.epochs}, loss {found.get('loss', math.nan):.4g}",
                    (epoch + (step + 1) / steps) / self.epochs,
                )
        return {name: float(mean.compute()) for name, mean in means.items()}

    def _step(self) -> None:
        self.scaler.unscale_(self.optimizer)
        if self.recipe.clip:
            dispatch_clip_grad(self.model.parameters(), self.recipe.clip, mode=self.recipe.clip_mode)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.updates += 1
        if self.ema is not None:
            self.ema.update(self.model, step=self.updates)

    def _scale(self, loss: Tensor) -> Tensor:
        scaled: Tensor = self.scaler.scale(loss / self.recipe.accumulation)
        return scaled

    def _autocast(self) -> AbstractContextManager[object]:
        dtype = _AMP[self.recipe.amp]
        return torch.autocast(self.processes.device.type, dtype, enabled=self.recipe.amp != "none")

    def _synchronised(self, whole: bool) -> AbstractContextManager[object]:
        """Processes exchange gradients once a step, with its last part."""
        if whole or self.processes.count == 1:
            return nullcontext()
        no_sync: AbstractContextManager[object] = self.wrapped.no_sync()  # type: ignore[operator]
        return no_sync

    def _check(self, losses: Mapping[str, float], epoch: int, step: int) -> None:
        for name, value in losses.items():
            if not math.isfinite(value):
                raise TrainingError(
                    f"the {name} is {value} in step {step + 1} of epoch {epoch + 1}; {self.run.last_good()}. "
                    f"Begin anew with a lower lr, a longer warm-up or amp=none."
                )

    def _evaluate(self) -> dict[str, float]:
        found = dict(self.evaluate(self.model.eval()))
        if self.ema is not None:
            found |= {f"ema_{name}": value for name, value in self.evaluate(self.ema.module.eval()).items()}
        return found


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    known = list_optimizers()
    if recipe.optimizer not in known:
        near = difflib.get_close_matches(recipe.optimizer, known)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise UnknownNameError(
            f"unknown optimizer {recipe.optimizer!r}.{hint} timm.optim.list_optimizers() has all of them."
        )
    takes_eps = get_optimizer_info(recipe.optimizer).has_eps
    made: torch.optim.Optimizer = create_optimizer_v2(
        model,
        opt=recipe.optimizer,
        lr=recipe.lr * recipe.batch / recipe.lr_batch,
        weight_decay=recipe.weight_decay,
        **({"eps": recipe.eps} if takes_eps else {}),
    )
    return made


@contextmanager
def _reproducible(device: torch.device) -> Iterator[None]:
    """On CPUs, only what sums in one order.

    Gradients of attention biases are added by index, which several threads do in any order otherwise. On GPUs
    it would cost speed, and PyTorch does not have it for every operator.
    """
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
