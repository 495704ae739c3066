"""Files that one process writes at a time, as long as it lives.

Locks are the system's, which ends them with their process, however that ends. They are those of
``lockf``: forked processes that load images would inherit one of ``flock``, and hold it for as long as
they outlive a process that was killed. In return, a process that has locked a file must not open and
close it anew, which would unlock it, and is not kept from it by itself.
"""

from __future__ import annotations

import errno
from typing import IO

try:
    import fcntl
except ImportError:  # a system without
    fcntl = None  # type: ignore[assignment]


def lock(file: IO[bytes]) -> bool:
    """Lock a file, opened to write, until it is closed.

    Returns whether it is: False where the system or the file system has no locks. Raises BlockingIOError
    where another process has it.
    """
    if fcntl is None:
        return False
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):  # either, says POSIX
            raise BlockingIOError(errno.EAGAIN, "another process has locked it") from error
        return False
    return True
