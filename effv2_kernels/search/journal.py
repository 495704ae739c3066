"""Files of JSON lines that a run which is killed at any moment finds again, and goes on with."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from effv2_kernels.errors import Effv2Error, SearchError


class Journal:
    """A file whose first line says what it is of, and every other holds one record.

    about: JSON values by name. A file that is there must be of the same; half a line at its end, of a run
    that was killed while it wrote, is cut off. error: what is raised where the file is of something else,
    with what differs, or cannot be read or written. remedy: what messages then advise.
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
        with self._mended("read"):
            there = path.read_bytes() if path.exists() else b""
        whole = there[: there.rfind(b"\n") + 1]
        if len(whole) < len(there):
            if not whole and not _line(about).startswith(there):
                raise error(f"'{path}' is no record of such a run: remove it, or {remedy}.")
            with self._mended("written"):
                os.truncate(path, len(whole))
        if not whole:
            self._write(about)
            return
        first, *self.records = self._parsed(whole)
        given = json.loads(json.dumps(about))
        differ = [name for name in {**given, **first} if first.get(name) != given.get(name)]
        if differ:
            changes = (
                f"{name} {_short(first.get(name))}, and now {_short(given.get(name))}" for name in differ
            )
            raise error(
                f"'{path}' was written with {'; '.join(changes)}: go on with the same options, or {remedy}."
            )

    def add(self, record: Mapping[str, Any]) -> None:
        """Write a record; it is on disk when this returns."""
        self._write(record)
        self.records.append(json.loads(json.dumps(record)))

    def _write(self, record: Mapping[str, Any]) -> None:
        with self._mended("written"), self.path.open("ab") as file:
            file.write(_line(record))
            file.flush()
            os.fsync(file.fileno())

    def _parsed(self, whole: bytes) -> list[dict[str, Any]]:
        try:
            found = [json.loads(line) for line in whole.splitlines()]
        except ValueError as error:
            raise self._error(f"'{self.path}' is damaged: remove it, or {self._remedy}.") from error
        if not all(isinstance(record, dict) for record in found):
            raise self._error(f"'{self.path}' is no record of such a run: remove it, or {self._remedy}.")
        return found

    @contextmanager
    def _mended(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._error(f"'{self.path}' cannot be {what}: {error.strerror or error}.") from error


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record).encode() + b"\n"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
