"""Files of JSON lines that a run which is killed at any moment finds again, and goes on with."""

from __future__ import annotations

import errno
import io
import json
import os
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from effv2_kernels.errors import Effv2Error, SearchError
from effv2_kernels.fields import shown
from effv2_kernels.locking import lock


class Journal:
    """A file whose first line says what it is of, and every other holds one record.

    about: JSON values by name. A file that is there must be of the same; half a line at its end, of a run
    that was killed while it wrote, is cut off when the next record is added. A file of anything else stays
    as it is. Until ``close()`` the file is this process's, as two would tear each other's lines. error:
    what is raised where it is of something else, with what differs, or another process's, or cannot be
    read or written. remedy: what messages then advise.
    """

    def __init__(
        self,
        path: Path,
        about: Mapping[str, Any],
        *,
        error: type[Effv2Error] = SearchError,
        remedy: str = "choose another folder",
    ) -> None:
        self.path = path
        self.records: list[dict[str, Any]] = []
        self._error, self._remedy = error, remedy
        with self._mended("written"):
            self._file = self._opened(path)  # once: to close it anywhere unlocks it
        self.close = weakref.finalize(self, self._file.close)
        try:
            lock(self._file)
        except BlockingIOError as locked:
            raise error(
                f"'{path}' is being written by another process: wait until that has ended, or {remedy}."
            ) from locked
        with self._mended("read"):
            self._file.seek(0)
            there = self._file.read()
        whole = there[: there.rfind(b"\n") + 1]
        # Nothing is cut off before the file is known to be such a record: it may be anybody's.
        self._kept = len(whole) if len(whole) < len(there) else None
        if not whole:
            if not _line(about).startswith(there):
                raise self._foreign()
            self._write(about)
            return
        first, *lines = whole.splitlines()
        self._check_first(first, about)
        self.records = [self._parsed(line) for line in lines]

    @staticmethod
    def _opened(path: Path) -> io.FileIO:
        try:
            return path.open("a+b", buffering=0)
        except OSError as error:  # one that may only be read is refused when something is to be added
            if error.errno not in (errno.EACCES, errno.EROFS) or not path.exists():
                raise
            return path.open("rb", buffering=0)

    def _check_first(self, line: bytes, about: Mapping[str, Any]) -> None:
        try:
            first = json.loads(line)
        except (ValueError, RecursionError):
            first = None
        if not isinstance(first, dict):
            raise self._foreign()
        given = json.loads(json.dumps(about))
        differ = [name for name in {**given, **first} if first.get(name) != given.get(name)]
        if differ:
            most = 200  # identities of evaluators differ at their ends
            changes = [
                f"{n} {shown(first.get(n), most)}, and now {shown(given.get(n), most)}" for n in differ
            ]
            raise self._error(
                f"'{self.path}' was written with {'; '.join(changes)}: go on with the same options, or "
                f"{self._remedy}."
            )

    def _foreign(self) -> Effv2Error:
        return self._error(f"'{self.path}' is no record of such a run: remove it, or {self._remedy}.")

    def damaged(self, what: str = "") -> Effv2Error:
        """The error to raise where a record is none. what: is wrong with it, as a clause."""
        reason = f" ({what})" if what else ""
        return self._error(f"'{self.path}' is damaged{reason}: remove it, or {self._remedy}.")

    def add(self, record: Mapping[str, Any]) -> None:
        """Write a record; it is on disk when this returns."""
        self._write(record)
        self.records.append(json.loads(json.dumps(record)))

    def _write(self, record: Mapping[str, Any]) -> None:
        with self._mended("written"):
            if self._kept is not None:
                self._file.truncate(self._kept)
                self._kept = None
            line = _line(record)
            while line:  # a full disk takes the beginning, and then refuses
                line = line[self._file.write(line) :]
            os.fsync(self._file)

    def _parsed(self, line: bytes) -> dict[str, Any]:
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise self.damaged() from error
        if not isinstance(found, dict):
            raise self.damaged()
        return found

    @contextmanager
    def _mended(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._error(f"'{self.path}' cannot be {what}: {error.strerror or error}.") from error


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record).encode() + b"\n"
