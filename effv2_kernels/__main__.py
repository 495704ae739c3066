"""``python -m effv2_kernels COMMAND``: a table of commands, each a module of effv2_kernels.cli."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from io import UnsupportedOperation

import effv2_kernels
from effv2_kernels import memory
from effv2_kernels.cli.interruption import Interruption, advice
from effv2_kernels.errors import Effv2Error

COMMANDS = {
    "classify": "say what is on a photograph",
    "demo": "read handwritten digits and a photograph, plain and optimised",
    "bench": "time one model and what could be used instead",
    "profile": "time every block of a model",
    "supernet": "train the weights of every network of a search space at once",
    "latency": "measure what networks of a search space take on a device",
    "search": "find the most accurate subnet of a supernet that is small and fast enough",
    "scaling": "count how the work of networks divides among threads",
    "explain": "say what runs each block, and why",
    "convert": "fold a checkpoint into a file that loads without the model's code",
    "verify": "compare an optimised model with the float64 reference",
    "train": "train a model on folders of images, or on another dataset that timm reads",
    "evaluate": "count how often a model is right, plain and optimised, image by image",
    "env": "print what a bug report needs",
}


# What the system says where an open file cannot be written.
_OF_OUTPUT = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)

interruption = Interruption()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns 0, 1 where a comparison failed, or 2 for an error that the user can mend."""
    if sys.stderr is None:  # closed, and nobody is to be told anything
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    if sys.stdout is None:
        print("error: standard output is closed: send it to a file, or to /dev/null.", file=sys.stderr)
        return 2
    try:
        try:
            code = _reported(list(sys.argv[1:] if argv is None else argv))
        except SystemExit:  # of argparse, which has printed help, or what is wrong
            sys.stdout.flush()
            raise
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has all that it wanted
        _discard_output()
        return 0
    except OSError as error:
        if not _is_of_output(error):
            raise
        _discard_output()
        print(
            f"error: cannot write to standard output ({error.strerror or error}): make room, or send it "
            f"elsewhere.",
            file=sys.stderr,
        )
        return 2
    return code


def _is_of_output(error: OSError) -> bool:
    """Whether it is standard output that cannot be written, and no file of the command's own."""
    if error.filename is not None or error.errno not in _OF_OUTPUT:
        return False
    try:
        sys.stdout.flush()
        # Without a buffer (python -u) nothing is left to write.
        os.write(sys.stdout.fileno(), b"\n")
    except UnsupportedOperation:  # another object in its place
        return False
    except OSError:
        return True
    return False


def _discard_output() -> None:
    """Have the interpreter, which flushes at exit, not say again what was told."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _reported(arguments: list[str]) -> int:
    """Run one command; errors that the user can mend are told on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m effv2_kernels", description="EfficientFormerV2 and its like, fast on the CPU."
    )
    parser.add_argument("--version", action="version", version=f"effv2_kernels {effv2_kernels.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    # Only the command at hand is imported, so that `env` works where another one's packages are missing.
    chosen = next((argument for argument in arguments if argument in COMMANDS), None)
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary.capitalize() + ".")
        if name == chosen:
            module = import_module(f"effv2_kernels.cli.{name}")
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    args = parser.parse_args(arguments)
    interruption.advice = advice(args)
    try:
        return int(args.run(args))
    except Effv2Error as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (MemoryError, OSError, RuntimeError) as error:  # of what a command does itself
        if not memory.lacks(error):
            raise
        print(f"error: {memory.refusal(f'run {args.command}')}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    interruption.ends(main)
