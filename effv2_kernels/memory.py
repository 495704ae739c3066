"""Memory that cannot be had: PyTorch, safetensors and Python each say it in their own way, users hear one."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from effv2_kernels.errors import Effv2Error, UnavailableError

# In the messages of bare RuntimeErrors: of PyTorch's allocator, of C++'s, and of the operating system's.
_WORDS = ("you tried to allocate", "bad_alloc", "Cannot allocate memory")


def lacks(error: BaseException) -> bool:
    """Whether an error says that there was not enough memory; of that of a GPU, PyTorch's own one does."""
    if isinstance(error, Effv2Error):
        return False
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    said = isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)
    return said or isinstance(error, MemoryError)


def refusal(purpose: str, advice: str = "free some, or run it where there is more") -> UnavailableError:
    """The error for users. purpose: what it was for, behind "to"; advice: what to do."""
    return UnavailableError(f"there is not enough memory to {purpose}: {advice}.")


@contextmanager
def needed_to(purpose: str) -> Iterator[None]:
    """Within it, or within the function that it decorates, a lack of memory is an UnavailableError."""
    try:
        yield
    except (MemoryError, OSError, RuntimeError) as error:
        if not lacks(error):
            raise
        raise refusal(purpose) from error


def amount(count: int) -> str:
    """So many bytes, for people."""
    return f"{count / 1e6:.1f} MB" if count >= 100_000 else f"{count} bytes"
