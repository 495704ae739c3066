"""What a run leaves to read: log.csv, events for TensorBoard, and plot.png."""

from __future__ import annotations

import contextlib
import csv
import io
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from effv2_kernels.errors import TrainingError
from effv2_kernels.train import state
from effv2_kernels.train.events import Events

_REDRAWN = 60  # seconds

Row = Mapping[str, float]


class Log:
    """The log of a run in its folder. A row is an epoch: numbers by name, the same names in every row.

    The file is written anew from all rows each time, and is never half a row; a resumed run gives the rows of
    its checkpoint. What came after them is gone; those that there was no time or no room for are logged.
    """

    def __init__(self, folder: Path, rows: Sequence[Row] = ()) -> None:
        self._folder = folder
        self._drawn = time.monotonic()
        # Events are written first, so that they have what the file has; what they have beyond is hidden.
        self._logged = min(_rows_of(folder / "log.csv"), len(rows))
        # Its file is made with its first row: starts that end before their first epoch leave none.
        self._events: Events | None = None
        if rows:
            self.write(rows)

    def write(self, rows: Sequence[Row]) -> None:
        """Log those that are new. Raises TrainingError where the disk is full."""
        for row in rows[self._logged :]:
            self._events = self._events or Events(self._folder, hidden_from=self._logged + 1)
            self._events.write(int(row["epoch"]), {name: row[name] for name in row if name != "epoch"})
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[-1]), lineterminator="\n", restval="", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
        state.write(self._folder / "log.csv", text.getvalue().encode())
        self._logged = len(rows)
        # Drawing takes half a second, as long as a small epoch.
        if time.monotonic() - self._drawn > _REDRAWN:
            state.write(self._folder / "plot.png", plot(rows))
            self._drawn = time.monotonic()

    def close(self, rows: Sequence[Row]) -> None:
        """Draw the plot a last time; without it where the disk is full, which was told before."""
        if rows:
            with contextlib.suppress(TrainingError):
                state.write(self._folder / "plot.png", plot(rows))


def _rows_of(path: Path) -> int:
    """How many rows a file has below its header; without a file, none."""
    with contextlib.suppress(OSError):
        return max(path.read_bytes().count(b"\n") - 1, 0)
    return 0


def plot(rows: Sequence[Row]) -> bytes:
    """A PNG: losses, shares of right images and the rate of learning over the epochs."""
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    epochs = [row["epoch"] for row in rows]
    names = list(rows[-1])
    groups = {
        "loss": [name for name in names if name.endswith("loss")],
        "share of right images": [name for name in names if "top" in name],
        "rate of learning": [name for name in names if name == "lr"],
    }
    for axes, (title, members) in zip(figure.subplots(1, 3), groups.items(), strict=True):
        for name in members:
            axes.plot(epochs, [row.get(name, math.nan) for row in rows], label=name, marker=".")
        axes.set_title(title)
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        if members:
            axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110)
    return buffer.getvalue()
