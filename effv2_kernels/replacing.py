"""Files that are whole at any moment: written beside, then renamed."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields where to write a file anew; that takes its place at the end, and is gone after an error.

    Of several processes that write one file, each writes elsewhere, and the last one to end is right.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        yield part
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def remove_parts(folder: Path) -> None:
    """Remove what killed processes left in a folder where no other process writes."""
    for part in folder.glob(".*.part"):
        with suppress(OSError):
            part.unlink()
