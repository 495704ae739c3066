"""The folder of a run: its checkpoint, best weights, log and recipe; written by one process, read by all.

last.pt            everything that the run needs to go on
best.safetensors   the weights that were best so far, for ``create_model(checkpoint=...)``
log.csv, plot.png, events.out.tfevents...
recipe.json        the recipe, and what was trained on what
.lock              locked by the process that writes
"""

from __future__ import annotations

import json
import os
import socket
import weakref
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors.torch import save as as_safetensors
from torch import nn

from effv2_kernels.errors import TrainingError
from effv2_kernels.locking import lock
from effv2_kernels.replacing import remove_parts
from effv2_kernels.train import state
from effv2_kernels.train.log import Log
from effv2_kernels.train.recipe import Recipe

MONITORED = "top1"


class Run:
    """A run in a folder, new or to be gone on with.

    about: plain values by name that a resumed run must share, beside the recipe, such as the model's name and
    the number of classes. conditions: those that may change, at the price of other bits, such as the number
    of processes. newer: names in about that earlier versions did not note; those that a checkpoint lacks
    are not compared, and stand in ``unnoted``. resume: go on where the folder holds a checkpoint, begin
    where it does not. writes: whether this process is the one that writes; the folder is locked for it
    until ``close()``.

    Raises TrainingError where the folder holds a run and ``resume`` is False, where its checkpoint is of
    another recipe or of other things, where another process writes there, or where it cannot be read or
    written.
    """

    def __init__(
        self,
        folder: Path,
        recipe: Recipe,
        about: Mapping[str, Any],
        *,
        conditions: Mapping[str, Any] | None = None,
        newer: Collection[str] = (),
        resume: bool = False,
        writes: bool = True,
    ) -> None:
        self.folder, self.writes = folder, writes
        self.checkpoint, self.best = folder / "last.pt", folder / "best.safetensors"
        self.epoch = self.updates = 0
        self.best_value = -1.0
        self.rows: list[dict[str, float]] = []
        self.changed: list[str] = []  # conditions that are not as they were
        self.unnoted: list[str] = []
        self._identity = {**recipe.as_dict(), **about}
        self._conditions = dict(conditions or {})
        self._content: dict[str, Any] | None = None
        if writes:
            self._take()
        if self.checkpoint.exists():
            if not resume:
                raise TrainingError(
                    f"'{folder}' holds a run already: go on with it by --resume, or give another folder."
                )
            self._content = self._read(newer)
        if writes:
            told = {"recipe": recipe.as_dict(), **about, **self._conditions}
            state.write(folder / "recipe.json", (json.dumps(told, indent=1) + "\n").encode())
        self._log = Log(folder, self.rows) if writes else None

    def _take(self) -> None:
        """Make the folder, and have it for this process alone."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = (self.folder / ".lock").open("a+b", buffering=0)
        except OSError as error:
            raise TrainingError(
                f"cannot make the folder '{self.folder}', or write there: {error.strerror}."
            ) from error
        self._release = weakref.finalize(self, file.close)
        try:
            locked = lock(file)
        except BlockingIOError as error:
            file.seek(0)
            who = file.read().decode() or "which begins"
            raise TrainingError(
                f"'{self.folder}' is being written by another run, {who}: wait until that has ended, or end "
                f"it, and go on with --resume; or give another folder."
            ) from error
        if locked:
            for name in (self.checkpoint.name, self.best.name, "recipe.json", "log.csv", "plot.png"):
                remove_parts(self.folder / name)
            with suppress(OSError):  # of a full disk whatever is written next tells more
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())

    def _read(self, newer: Collection[str]) -> dict[str, Any]:
        content = state.load(self.checkpoint)
        begun = content["identity"]
        self.unnoted = [name for name in newer if name in self._identity and name not in begun]
        comparable = {name: value for name, value in self._identity.items() if name not in self.unnoted}
        differing = state.differences(begun, comparable)
        if differing:
            raise TrainingError(
                f"'{self.checkpoint}' is of another run: {'; '.join(differing)}. Go on with the options that "
                f"it was begun with, or give another folder."
            )
        self.changed = state.differences(content["conditions"], self._conditions)
        self.epoch, self.updates = content["epoch"], content["updates"]
        self.best_value, self.rows = content["best"], content["rows"]
        return content

    @property
    def begins(self) -> dict[str, Any]:
        """Behind which epoch it goes on, and what it is about: the same for all processes of a run."""
        return {"epoch": self.epoch, **self._identity}

    def restore(self, parts: Mapping[str, Any]) -> None:
        """Give each part, by name, its state of the checkpoint, and the random generators theirs."""
        if self._content is None:
            return
        for name, part in parts.items():
            part.load_state_dict(self._content[name])
        state.set_random_state(self._content["random"])
        self._content = None

    def finish_epoch(
        self, row: dict[str, float], model: nn.Module, average: nn.Module | None, parts: Mapping[str, Any]
    ) -> None:
        """Keep an epoch: the best weights if these are, then the checkpoint, then the log."""
        self.rows.append(row)
        self.epoch += 1
        candidates = (
            {MONITORED: model} if average is None else {f"ema_{MONITORED}": average, MONITORED: model}
        )
        name = max(candidates, key=lambda name: row.get(name, -1.0))
        better = row.get(name, -1.0) > self.best_value
        self.best_value = max(self.best_value, row.get(name, -1.0))
        if not self.writes or self._log is None:
            return
        if better:
            tensors = {key: value.contiguous() for key, value in candidates[name].state_dict().items()}
            # Killed between the two, the run makes this epoch again, and these weights.
            # One entry: safetensors writes several in any order, and other bytes each time.
            told = {"effv2_kernels.train": f"{name} of epoch {self.epoch}"}
            state.write(self.best, as_safetensors(tensors, metadata=told))
        content: dict[str, Any] = {name: part.state_dict() for name, part in parts.items()}
        content |= {
            "identity": self._identity,
            "conditions": self._conditions,
            "epoch": self.epoch,
            "updates": self.updates,
            "best": self.best_value,
            "rows": self.rows,
            "random": state.random_state(),
        }
        state.save(self.checkpoint, content)
        self._log.write(self.rows)

    def last_good(self) -> str:
        """Where a run that stops can be gone on with, for messages."""
        if not self.checkpoint.exists():
            return "there is no checkpoint yet"
        return f"the checkpoint '{self.checkpoint}' is that of the end of epoch {self.epoch}"

    def close(self) -> None:
        """Draw the plot, close the log, and leave the folder to others."""
        if self._log is not None:
            self._log.close(self.rows)
            self._release()
