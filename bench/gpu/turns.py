"""Turns of processes that share a GPU: what one of them measures must not be disturbed by the others."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Turns:
    """By locks on files in ``folder``, which the system takes back from a process that ends. None: no others.

    One that has a turn may take it again within it, but not ``alone`` while it is compiling. Not for several
    threads.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._held: set[str] = set()

    @contextmanager
    def gpu(self) -> Iterator[None]:
        """Nobody else times anything."""
        with self._locked("gpu.lock", fcntl.LOCK_EX):
            yield

    @contextmanager
    def compiling(self) -> Iterator[None]:
        """Others may compile as well, but not measure ``alone``."""
        with self._locked("compiling.lock", fcntl.LOCK_SH):
            yield

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody else uses the GPU, or the processors for compiling."""
        with self._locked("compiling.lock", fcntl.LOCK_EX), self.gpu():
            yield

    @contextmanager
    def _locked(self, name: str, how: int) -> Iterator[None]:
        if self._folder is None or name in self._held:
            yield
            return
        with (self._folder / name).open("a") as file:
            fcntl.flock(file, how)
            self._held.add(name)
            try:
                yield
            finally:
                self._held.discard(name)
