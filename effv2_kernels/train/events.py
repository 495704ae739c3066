"""Numbers for TensorBoard: a file of its format, which grows by the numbers of an epoch at once.

TensorBoard's own writer is not taken, as it writes in a thread: what the disk does not take ends there with a
traceback, and is an OSError later, where nobody expects it. Here it is a TrainingError where it happens.
"""

from __future__ import annotations

import io
import os
import socket
import time
from collections.abc import Mapping
from itertools import count
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from effv2_kernels.train import state

_numbers = count()


class Events:
    """A new file in the folder. hidden_from: epochs from this one on in older files there are not shown.

    Raises TrainingError where the disk is full.
    """

    def __init__(self, folder: Path, *, hidden_from: int) -> None:
        now = time.time()
        # As TensorBoard's writer names them, which readers take in the order of their names.
        parts = (f"{now:010.0f}", socket.gethostname(), os.getpid(), next(_numbers))
        self._path = folder / f"events.out.tfevents.{'.'.join(map(str, parts))}"
        begun = SessionLog(status=SessionLog.START)
        self._append(
            Event(wall_time=now, file_version="brain.Event:2"),
            Event(wall_time=now, step=hidden_from, session_log=begun),
        )

    def write(self, epoch: int, numbers: Mapping[str, float]) -> None:
        """Numbers by name. Raises TrainingError where the disk is full; earlier ones stay."""
        now = time.time()
        values = [Summary.Value(tag=name, simple_value=value) for name, value in numbers.items()]
        self._append(*(Event(wall_time=now, step=epoch, summary=Summary(value=[v])) for v in values))

    def _append(self, *events: Event) -> None:
        records = io.BytesIO()
        writer = RecordWriter(records)
        for event in events:
            writer.write(event.SerializeToString())
        state.append(self._path, records.getvalue())
