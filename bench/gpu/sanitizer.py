"""NVIDIA's compute-sanitizer on small launches of the CUDA kernels: all kinds, and a network in one.

    compute-sanitizer --tool memcheck python bench/gpu/sanitizer.py --cuda build/gpu-prepared

memcheck watches memory, racecheck shared memory; each launch becomes hundreds of times slower, so they are
small and few. What is computed is compared as well.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.gpu.parent import end_with_parent

TOOLS = ("memcheck", "racecheck")
SECONDS = 120.0
_FOUND = 3  # its exit code where it has found something
_KEPT = 2000  # last characters of what it says
# Ours alone are watched, by a part of their names; PyTorch's take all the time otherwise.
_KERNELS = "kernel_substring=effv2"


def find() -> str | None:
    """The program, or None where there is none."""
    beside_nvcc = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin" / "compute-sanitizer"
    return shutil.which("compute-sanitizer") or (str(beside_nvcc) if beside_nvcc.exists() else None)


def run(program: str, tool: str, cuda: Path, seconds: float = SECONDS) -> dict[str, Any]:
    """``failure`` where something was found, ``late`` where no answer came within so many seconds."""
    command = [
        program, "--tool", tool, "--kernel-name", _KERNELS, "--error-exitcode", str(_FOUND),
        sys.executable, str(Path(__file__).resolve()), "--cuda", str(cuda), "--end-with-stdin",
    ]  # fmt: skip
    start = time.monotonic()
    held, ours = os.pipe()
    process = subprocess.Popen(
        command,
        stdin=held,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # what is watched outlives the tool that is ended
    )
    os.close(held)
    try:
        said, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        said, _ = process.communicate()
        return {"said": said[-_KEPT:], "late": f"no answer within {seconds:g} s"}
    finally:
        os.close(ours)  # as the system does where this process is killed
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    found: dict[str, Any] = {"seconds": round(time.monotonic() - start, 1), "said": said[-_KEPT:]}
    if process.returncode != 0:
        what = "found something" if process.returncode == _FOUND else f"ended with {process.returncode}"
        found["failure"] = f"{tool} {what}: {_last_line(said)}"
    return found


def _last_line(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1][-200:] if lines else "nothing was said"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cuda", type=Path, help="folder of prepare.py; default: the module in place")
    parser.add_argument("--cpu", action="store_true", help="for a module that is an emulator")
    parser.add_argument("--end-with-stdin", action="store_true", help="end when stdin is closed")
    args = parser.parse_args(arguments)
    if args.end_with_stdin:
        end_with_parent()
    if args.cuda is not None:
        from bench.gpu import prepared

        prepared.load(args.cuda, prepared.CUDA)
    import torch

    from bench.gpu import cuda_parity

    device = torch.device("cpu") if args.cpu else torch.device("cuda", 0)
    wrong = 0
    for row in cuda_parity.small(device):
        print(f"{'ok' if row.ok else 'WRONG'} {row.what} {row.dtype}: {row.failure or row.error}", flush=True)
        wrong += not row.ok
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
