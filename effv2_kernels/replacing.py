"""Files that are whole at any moment: written beside, then renamed."""

from __future__ import annotations

import errno
import glob
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_TOKEN = 4  # bytes of a name that no other process takes


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields where to write a file anew; that takes its place at the end, and is gone after an error.

    A symbolic link stays, and what it leads to is replaced. Who may read the old file may read the new one,
    and where there was none, whom this system lets by default: some writers, such as safetensors, write for
    the owner alone. Of several processes that write one file, each writes elsewhere, and the last one to end
    is right.

    Raises OSError where the file may not be written, or is no regular one.
    """
    mode = _mode_of(path)
    target = Path(os.path.realpath(path))
    part = target.with_name(f".{target.name}.{secrets.token_hex(_TOKEN)}.part")
    try:
        try:
            part.touch()
        except OSError as error:
            raise OSError(error.errno, error.strerror, os.fspath(path)) from error
        if mode is None:
            mode = stat.S_IMODE(part.stat().st_mode)
        yield part
        with suppress(OSError):  # there are file systems that know no modes
            part.chmod(mode)
        os.replace(part, target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _mode_of(path: Path) -> int | None:
    """That of the file that is replaced; None where there is none."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # a pipe would be waited for, a device replaced
        raise OSError(errno.EINVAL, "it is no regular file", os.fspath(path))
    with path.open("r+b"):  # as who writes into it would have to
        return stat.S_IMODE(mode)


def require_writable(path: Path) -> None:
    """Raise OSError where a file cannot be written, and leave everything as it is: before long work."""
    target = Path(os.path.realpath(path))  # of a link what it leads to
    there = target.exists()
    if there and not target.is_file() and not target.is_dir():
        return  # a pipe or a device: who reads there would see it end
    with target.open("ab"):
        pass
    if not there:
        target.unlink()


def remove_parts(path: Path) -> None:
    """Remove what killed processes left of a file that no other process writes."""
    target = Path(os.path.realpath(path))
    for part in target.parent.glob(f".{glob.escape(target.name)}.{'[0-9a-f]' * 2 * _TOKEN}.part"):
        with suppress(OSError):
            part.unlink()
