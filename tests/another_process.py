"""A second process beside the test's, which is killed, as by ``kill -9`` or for want of memory."""

import os
import signal
import traceback
from contextlib import contextmanager


@contextmanager
def that_stays(function):
    """A process in function(stay) that has called stay(), which does not return; yields its id."""
    reading, writing = os.pipe()

    def stay():
        os.write(writing, b"1")
        signal.pause()

    child = os.fork()
    if child == 0:
        try:
            function(stay)
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    os.close(writing)
    try:
        with os.fdopen(reading, "rb") as ready:
            assert ready.read(1) == b"1"
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
