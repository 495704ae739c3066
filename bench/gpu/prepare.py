"""Compile on any machine what run_all.py uses, since the GPU's may have no compilers, headers or network.

    python bench/gpu/prepare.py build/gpu-prepared --python build/gpu-python/bin/python

OUT gets Triton's kernels, the CUDA kernels with the tests of their wrappers, and the CPU engine: some 16 MB,
which are printed. --python is an interpreter with the PyTorch and Triton that are beside the GPU; ``make
prepare-gpu`` makes one. Needs nvcc, CMake, the headers of that Python, and pybind11 in the environment that
runs this. Takes half an hour on two cores; what was made of the same sources is kept in build/ for the next
call. Beside the GPU:

    python bench/gpu/run_all.py --out build/gpu --prepared build/gpu-prepared

Exit code: 0 all of it is there and small enough, 1 it is not, 2 something to make it with is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.gpu.prepared import CUDA, KERNELS, NATIVE, ROOT, WRAPPERS, describe
from bench.gpu.results import git

# What may be carried to a GPU at most.
MOST_BYTES = 40_000_000

# Asked of the interpreter.
_QUESTION = """
import importlib.util, json, os, sysconfig
print(json.dumps({
    "suffix": sysconfig.get_config_var("EXT_SUFFIX"),
    "headers": os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")),
    "lacking": [name for name in ("torch", "triton") if importlib.util.find_spec(name) is None],
}))
"""


class Missing(Exception):
    """Something to compile with is not there."""


def suffix_of(python: str) -> str:
    """Of the names of a Python's modules. Raises Missing where something cannot be compiled with it."""
    try:
        done = subprocess.run([python, "-c", _QUESTION], capture_output=True, text=True, check=True)
        found: dict[str, Any] = json.loads(done.stdout)
    except (OSError, subprocess.CalledProcessError, ValueError) as error:
        raise Missing(f"{python} is no Python that runs ({error})") from error
    if not found["headers"]:
        raise Missing(f"{python} has no headers to build a module with (Python.h)")
    if found["lacking"]:
        lacking = " and no ".join(found["lacking"])
        raise Missing(f"{python} has no {lacking}; make prepare-gpu makes one with both")
    return str(found["suffix"])


def prepare(out: Path, python: str, capability: int, nvcc: str, jobs: int) -> None:
    """Fill ``out``. Raises Missing, and subprocess.CalledProcessError where something does not compile."""
    suffix = suffix_of(python)
    release = _release(nvcc)
    out.mkdir(parents=True, exist_ok=True)
    for old in [*out.glob(f"{CUDA}.*"), *out.glob(f"{NATIVE}.*"), out / WRAPPERS, out / KERNELS]:
        old.unlink(missing_ok=True)
    kept = ROOT / "build" / "gpu-ahead"
    interpreter = Path(shutil.which(python) or python).absolute()  # CMake looks from a folder of its own
    asked = [sys.executable, "-m", "pybind11", "--cmakedir"]
    pybind11 = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()

    def build(target: str, folder: Path, *options: str) -> None:
        options = ("-DCMAKE_BUILD_TYPE=Release", *options)
        _run(["cmake", "-S", ROOT, "-B", folder, *options])
        _run(["cmake", "--build", folder, "--target", target, "--parallel", str(jobs)])

    def module(name: str, folder: Path, *options: str) -> None:
        (folder / "CMakeCache.txt").unlink(missing_ok=True)  # it may be of another environment's Python
        build(
            name, folder, f"-DPython_EXECUTABLE={interpreter}", f"-Dpybind11_DIR={pybind11}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={out.resolve()}", *options,
        )  # fmt: skip
        if not (out / f"{name}{suffix}").exists():
            raise Missing(f"for {python} CMake made no {name}{suffix}: it found another Python")

    cuda = (
        "-DEFFV2_CUDA=ON", f"-DEFFV2_CUDA_ARCHITECTURES={capability}", f"-DCMAKE_CUDA_COMPILER={nvcc}",
    )  # fmt: skip
    engine = kept / f"sm_{capability}"
    build("effv2_cuda", engine, *cuda, "-DEFFV2_PYTHON=OFF")
    module(CUDA, kept / f"sm_{capability}{suffix}", *cuda, f"-DEFFV2_ENGINE={engine}")
    module(NATIVE, kept / f"cpu{suffix}")
    # Machine code of this capability alone: a driver that compiles for itself could hide what was compiled.
    _run([
        nvcc, "-std=c++17", f"-arch=sm_{capability}", "-cudart=static", f"-I{ROOT / 'csrc'}",
        "-o", out / WRAPPERS, ROOT / "csrc" / "tests" / "cuda" / "wrappers.cu",
    ])  # fmt: skip
    _run([
        python, Path(__file__).with_name("kernels.py"), out / KERNELS, "--capability", str(capability),
        "--cache", kept / "triton",
    ])  # fmt: skip
    describe(out, capability=capability, cuda=release, commit=git("rev-parse", "HEAD"))


def _release(nvcc: str) -> str:
    try:
        said = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise Missing(f"{nvcc} is no compiler of NVIDIA's ({error}); give another with --nvcc") from error
    found = re.search(r"release ([\d.]+)", said)
    return found[1] if found else "unknown"


def _run(command: Sequence[str | Path]) -> None:
    subprocess.run([str(part) for part in command], check=True, stdout=sys.stderr)


def weigh(out: Path) -> tuple[int, list[str]]:
    """Bytes of all files in a folder, and a line for each."""
    sizes = {path.name: path.stat().st_size for path in sorted(out.iterdir()) if path.is_file()}
    return sum(sizes.values()), [f"{size / 1e6:7.2f} MB  {name}" for name, size in sizes.items()]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to fill")
    parser.add_argument(
        "--python", default=sys.executable, help="one like that beside the GPU; default: this one"
    )
    parser.add_argument("--capability", type=int, default=90, help="of the GPU; default: 90")
    parser.add_argument("--nvcc", default=shutil.which("nvcc") or "nvcc", help="default: that on PATH")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="compilers at once")
    args = parser.parse_args(arguments)
    try:
        prepare(args.out, args.python, args.capability, args.nvcc, args.jobs)
    except Missing as missing:
        print(f"nothing can be prepared: {missing}.", file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as error:
        print(f"{error.cmd[0]} ended with exit code {error.returncode}.", file=sys.stderr)
        return 1
    total, lines = weigh(args.out)
    print("\n".join([*lines, f"{total / 1e6:7.2f} MB  in {args.out}, for sm_{args.capability}"]))
    if total > MOST_BYTES:
        print(f"that is more than the {MOST_BYTES / 1e6:.0f} MB that are carried.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
