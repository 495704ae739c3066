"""Ctrl-C: a command ends without a traceback, and as killed by it, so that scripts around it stop as well."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any, NoReturn

_IMPORTS = "<frozen importlib"  # what Python calls the file of a function that imports


class Interruption:
    """What ends this process when it is interrupted. advice: how to go on, for a line on stderr."""

    def __init__(self) -> None:
        self.advice = ""
        self._seen = False
        self._process = os.getpid()

    def ends(self, main: Callable[[], int]) -> NoReturn:
        """Run ``main`` and exit with its code."""
        # Ignored already where a script starts it in the background, and so it stays.
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._handle)
            sys.unraisablehook = self._unraisable
        try:
            code = main()
        except BaseException:
            if self._seen:  # whatever came of it
                self._end()
            raise
        if self._seen and code:
            self._end()
        if signal.getsignal(signal.SIGINT) == self._handle:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # all is done, and nothing has to be left behind
        sys.exit(code)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Have files closed and removed on the way out; at once the second time, and while modules load.

        Compiled modules that are interrupted while they are loaded print, and raise other errors.
        """
        if os.getpid() != self._process:  # one that loads images, whose failure PyTorch would tell
            os._exit(0)
        if self._seen or _imports(frame):
            self._end()
        self._seen = True
        raise KeyboardInterrupt

    def _unraisable(self, told: Any) -> None:
        """What a destructor raised, which Python prints and forgets."""
        if self._seen and os.getpid() == self._process:
            self._end()
        sys.__unraisablehook__(told)

    def _end(self) -> NoReturn:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        # PyTorch's handler raises an error of processes that load images and are gone.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        with suppress(Exception):
            for child in sys.modules["multiprocessing"].active_children():
                child.terminate()
        with suppress(Exception):
            sys.stdout.flush()
        # A progress bar hides the cursor. Not by sys.stderr, in a call of which this may be.
        shown = "\x1b[?25h" if "rich" in sys.modules and os.isatty(2) else ""
        said = f"interrupted: {self.advice}\n" if self.advice else ""
        with suppress(OSError):
            os.write(2, f"{shown}{said}".encode())
        os.kill(os.getpid(), signal.SIGINT)
        os._exit(128 + signal.SIGINT)  # where it is blocked


def _imports(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith(_IMPORTS):
            return True
        frame = frame.f_back
    return False


def advice(args: argparse.Namespace) -> str:
    """How to go on with a command; "" where it only begins anew."""
    if os.environ.get("RANK", "0") not in ("", "0"):  # of several processes one says it
        return ""
    if args.command in ("train", "supernet", "search"):
        return f"the same command{'' if args.resume else ' with --resume'} goes on"
    if args.command == "latency" and args.out is not None:
        return "the same command goes on"
    return ""
