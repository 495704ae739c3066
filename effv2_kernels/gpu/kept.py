"""What was found out on a GPU, kept as JSON in the folder EFFV2_CACHE_DIR or ``~/.cache/effv2_kernels``.

A file that cannot be read or written is left alone with a warning: it only makes things slower.
"""

from __future__ import annotations

import json
import logging
import os
import re
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import effv2_kernels

_log = logging.getLogger(__name__)


def file_of(gpu: str, made_by: str) -> Path:
    """Of what was found on a kind of GPU with this version of the package.

    gpu: its name as PyTorch gives it. made_by: whatever else it depends on, such as a compiler's version.
    """
    return folder() / f"{kind_of(gpu)}-{effv2_kernels.__version__}-{made_by}.json"


def kind_of(gpu: str) -> str:
    """The name of a GPU as part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")


def folder() -> Path:
    named = os.environ.get("EFFV2_CACHE_DIR")
    if named:
        return Path(named)
    try:
        return Path.home() / ".cache" / "effv2_kernels"
    except RuntimeError:  # a user without a home
        return Path(tempfile.gettempdir()) / "effv2_kernels"


class Kept:
    """Texts by key, in a file that several processes may add to; may be used from several threads.

    path: None keeps them in this process alone. what: they are, in the plural, for messages.
    """

    def __init__(self, path: Path | None, what: str) -> None:
        self.path, self._what = path, what
        self._lock = threading.Lock()
        self._values = {} if path is None else read(path, what)

    def get(self, key: str) -> str | None:
        return self._values.get(key)

    def number(self, key: str) -> float | None:
        """As ``get``, of a number; None where something else was written by hand."""
        try:
            return float(self._values[key])
        except (KeyError, ValueError):
            return None

    def add(self, found: Mapping[str, str]) -> None:
        """Remember these here and on disk."""
        with self._lock:
            self._values = {**self._values, **found}
            if self.path is None or not found:
                return
            try:
                # Another process may have found something as well since this one began.
                _write(self.path, {**read(self.path, self._what), **found})
            except OSError as error:
                _log.warning(
                    "the %s cannot be kept in %s (%s); they are used in this process only. Name another "
                    "folder with EFFV2_CACHE_DIR.",
                    self._what,
                    self.path,
                    error,
                )


def read(path: Path, what: str) -> dict[str, str]:
    """What a file holds; nothing, with a warning, where it cannot be read."""
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        _log.warning("the %s in %s cannot be read (%s) and are ignored.", what, path, error)
        return {}
    if not isinstance(data, dict) or not all(isinstance(value, str) for value in data.values()):
        _log.warning("%s does not hold %s and is ignored.", path, what)
        return {}
    return data


def _write(path: Path, values: Mapping[str, str]) -> None:
    """Whole or not at all, whoever reads meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
        try:
            json.dump(values, file, indent=1, sort_keys=True)
            file.flush()
            os.chmod(file.name, 0o644)  # other users of the folder read it as well
            os.replace(file.name, path)
        except OSError:
            os.unlink(file.name)
            raise
