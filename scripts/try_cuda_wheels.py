"""Install each wheel of dist/cuda/, and ask it for what it must know where there is no GPU.

python scripts/try_cuda_wheels.py [--pythons PYTHON ...]

The kernels' module is imported in an environment that has nothing else, says why nothing can run and which
driver would do, and a launch that fails leaves it usable. Where there is a CPU build of PyTorch for a Python,
the wheel is also held to what it must compute on the CPU, as other wheels are (try_wheels.py).
"""

from __future__ import annotations

import argparse
import sys

from try_wheels import AGES, environment, install, run_in, try_wheel, wheel_for, why_not
from wheels import BUILD, CUDA_DIST, ROOT, environment_with, find_interpreters

QUESTIONS = ROOT / "scripts" / "ask_cuda_wheel.py"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pythons", nargs="+", metavar="PYTHON", help="default: all that are found")
    args = parser.parse_args()
    for interpreter in find_interpreters(args.pythons)[0]:
        wheel = wheel_for(interpreter, CUDA_DIST)
        print(f"== CPython {interpreter.version}: {wheel.name}", flush=True)
        alone = environment_with(interpreter, BUILD / interpreter.tag / "alone", ["pip"], "nothing\n")
        install(wheel, alone)
        run_in(alone, QUESTIONS)
        if reason := why_not(interpreter, AGES["newest"], cuda_builds=False):
            print(f"left out: what it computes on the CPU: {reason}", flush=True)
        else:
            try_wheel(wheel, environment(interpreter, "newest", AGES["newest"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
