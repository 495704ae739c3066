"""Several processes, as torchrun starts them: who this one is, and how they end.

A process alone is a group of one, so that there is one road through samplers, metrics and losses.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from effv2_kernels import devices


@dataclass(frozen=True)
class Processes:
    """The processes of a run. rank: the number of this one; device: what it computes on."""

    rank: int
    count: int
    device: torch.device

    @property
    def writes(self) -> bool:
        """Whether this one writes files and prints; one does."""
        return self.rank == 0

    def wrapped(self, model: nn.Module, *, unused_parameters: bool = False) -> nn.Module:
        """The model whose gradients are averaged over all processes; alone, the model itself.

        unused_parameters: of an objective whose forward passes do not use all of them.
        """
        if self.count == 1:
            return model
        # Statistics of BatchNorms are averaged at the end of an epoch instead (see trainer.py): sending rank
        # 0's to all others before every step would lose theirs.
        return DistributedDataParallel(
            model,
            device_ids=None if self.device.type == "cpu" else [self.device.index],
            broadcast_buffers=False,
            find_unused_parameters=unused_parameters,
        )

    def gathered(self, value: Any) -> list[Any]:
        """What every process gives, a plain value each, by rank. All have to ask."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        distributed.all_gather_object(found, value)
        return found

    def barrier(self) -> None:
        """Wait for all others."""
        if self.count > 1:
            distributed.barrier()


@contextmanager
def processes(device: str = "auto") -> Iterator[Processes]:
    """This process among those that torchrun started, or alone; nccl on GPUs, gloo on CPUs.

    device: "auto" (a GPU where there is one), "cpu", "cuda" or "cuda:1". Raises InputError for what is no
    device, UnavailableError for one that is not there.
    """
    rank, count = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    chosen = _device(device, int(os.environ.get("LOCAL_RANK", "0")), count)
    backend = "gloo" if chosen.type == "cpu" else "nccl"
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if count > 1:
        distributed.init_process_group(backend)
    else:
        alone = distributed.HashStore()  # type: ignore[attr-defined]
        distributed.init_process_group(backend, store=alone, rank=0, world_size=1)
    try:
        yield Processes(rank, count, chosen)
    finally:
        distributed.destroy_process_group()


def _device(name: str, local_rank: int, count: int) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = devices.named(name, "--device takes auto, cpu, cuda or cuda:1")
    if device.type == "cuda" and (count > 1 or device.index is None):
        device = torch.device("cuda", local_rank)
    devices.require(
        device, "training runs", "Give --device cpu, or torchrun as many processes as there are GPUs."
    )
    return device
