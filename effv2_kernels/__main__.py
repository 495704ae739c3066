"""``python -m effv2_kernels COMMAND``: a table of commands, each a module of effv2_kernels.cli."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

import effv2_kernels
from effv2_kernels import memory
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


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns 0, 1 where a comparison failed, or 2 for an error that the user can mend."""
    arguments = list(sys.argv[1:] if argv is None else argv)
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
    try:
        code = int(args.run(args))
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader, such as `head`, has all that it wanted; the interpreter must not flush at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Effv2Error as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (MemoryError, OSError, RuntimeError) as error:  # of what a command does itself
        if not memory.lacks(error):
            raise
        print(f"error: {memory.refusal(f'run {args.command}')}", file=sys.stderr)
        return 2
    return code


if __name__ == "__main__":
    sys.exit(main())
