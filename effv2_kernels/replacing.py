"""Files that are whole at any moment: written beside, then renamed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields where to write a file anew; that takes its place at the end, and is gone after an error."""
    part = path.with_name(f".{path.name}.part")  # one name: what a killed write left is overwritten
    try:
        yield part
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
