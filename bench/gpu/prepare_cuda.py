"""Compile on any machine what run_all.py --cuda needs, since the GPU's may have no nvcc, headers or network.

    python bench/gpu/prepare_cuda.py build/gpu-cuda --python python3.12

OUT gets the CUDA module for one kind of GPU and each --python, and the tests of the wrappers: some MB, which
are printed. Needs nvcc, CMake, the headers of these Pythons, and pybind11 in the environment that runs this.
What nvcc made of the kernels, minutes of work, is kept in build/ for the next call. Beside the GPU:

    python bench/gpu/run_all.py --out build/gpu --cuda build/gpu-cuda

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

from bench.gpu.cuda_build import ROOT, WRAPPERS, describe

# What may be carried to a GPU at most, with kernels.py's file where it lies in the same folder.
MOST_BYTES = 40_000_000

# Asked of each interpreter.
_QUESTION = """
import json, os, sysconfig
print(json.dumps({
    "suffix": sysconfig.get_config_var("EXT_SUFFIX"),
    "headers": os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")),
}))
"""


class Missing(Exception):
    """Something to compile with is not there."""


def suffix_of(python: str) -> str:
    """Of the names of a Python's modules. Raises Missing where none can be built for it."""
    try:
        done = subprocess.run([python, "-c", _QUESTION], capture_output=True, text=True, check=True)
        found: dict[str, Any] = json.loads(done.stdout)
    except (OSError, subprocess.CalledProcessError, ValueError) as error:
        raise Missing(f"{python} is no Python that runs ({error})") from error
    if not found["headers"]:
        raise Missing(f"{python} has no headers to build a module with (Python.h)")
    return str(found["suffix"])


def prepare(out: Path, pythons: Sequence[str], capability: int, nvcc: str, jobs: int) -> None:
    """Fill ``out``. Raises Missing, and subprocess.CalledProcessError where something does not compile."""
    suffixes = {python: suffix_of(python) for python in pythons}
    release = _release(nvcc)
    out.mkdir(parents=True, exist_ok=True)
    for old in [*out.glob("_cuda.*"), out / WRAPPERS]:
        old.unlink(missing_ok=True)
    kept = ROOT / "build" / "cuda-ahead" / f"sm_{capability}"
    engine = kept / "engine"
    common = [
        "-DCMAKE_BUILD_TYPE=Release", "-DEFFV2_CUDA=ON", f"-DEFFV2_CUDA_ARCHITECTURES={capability}",
        f"-DCMAKE_CUDA_COMPILER={nvcc}",
    ]  # fmt: skip
    _run(["cmake", "-S", ROOT, "-B", engine, *common, "-DEFFV2_PYTHON=OFF"])
    _run(["cmake", "--build", engine, "--target", "effv2_cuda", "--parallel", str(jobs)])
    asked = [sys.executable, "-m", "pybind11", "--cmakedir"]
    pybind11 = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    for python, suffix in suffixes.items():
        folder = kept / f"module{suffix}"
        _run([
            "cmake", "-S", ROOT, "-B", folder, *common, f"-DEFFV2_ENGINE={engine}",
            f"-DPython_EXECUTABLE={shutil.which(python)}", f"-Dpybind11_DIR={pybind11}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={out.resolve()}",
        ])  # fmt: skip
        _run(["cmake", "--build", folder, "--target", "_cuda", "--parallel", str(jobs)])
        if not (out / f"_cuda{suffix}").exists():
            raise Missing(f"for {python} CMake made no _cuda{suffix}: it found another Python")
    source = ROOT / "csrc" / "tests" / "cuda" / "wrappers.cu"
    # Machine code of this capability alone: a driver that compiles for itself could hide what was compiled.
    _run([
        nvcc, "-std=c++17", f"-arch=sm_{capability}", "-cudart=static", f"-I{ROOT / 'csrc'}",
        "-o", out / WRAPPERS, source,
    ])  # fmt: skip
    describe(out, capability=capability, cuda=release)


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
        "--python", nargs="+", default=[sys.executable], help="those beside GPUs; default: this one"
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
