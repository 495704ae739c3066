"""Install each wheel of dist/cuda/, and ask it for what it must know where there is no GPU.

python scripts/try_cuda_wheels.py [--pythons PYTHON ...]

It has machine code for every architecture, and PTX for the newest. The kernels' module is imported in an
environment that has nothing else, says why nothing can run and which driver would do, and a launch that fails
leaves it usable. Where there is a CPU build of PyTorch for a Python, the wheel is also held to what it must
compute on the CPU, as other wheels are (try_wheels.py).
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from compiled_kernels import ARCHITECTURES, program
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
        code = code_in(wheel)
        if code != (set(ARCHITECTURES), {ARCHITECTURES[-1]}):
            raise SystemExit(f"machine code and PTX are for {code}, and not for {ARCHITECTURES}")
        alone = environment_with(interpreter, BUILD / interpreter.tag / "alone", ["pip"], "nothing\n")
        install(wheel, alone)
        run_in(alone, QUESTIONS)
        if reason := why_not(interpreter, AGES["newest"], cuda_builds=False):
            print(f"left out: what it computes on the CPU: {reason}", flush=True)
        else:
            try_wheel(wheel, environment(interpreter, "newest", AGES["newest"]))
    return 0


def code_in(wheel: Path) -> tuple[set[str], set[str]]:
    """The architectures that the wheel's module has machine code for, and those of its PTX."""
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as files:
        (name,) = (name for name in files.namelist() if re.fullmatch(r"effv2_kernels/_cuda\..*\.so", name))
        module = files.extract(name, folder)

        def listed(option: str) -> set[str]:
            command = [program("cuobjdump"), option, module]
            said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            return set(re.findall(r"\.sm_(\d+)\.", said))

        return listed("--list-elf"), listed("--list-ptx")


if __name__ == "__main__":
    sys.exit(main())
