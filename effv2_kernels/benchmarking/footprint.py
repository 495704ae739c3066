"""What is paid before the first image: import, optimize() and its memory, each in a fresh process."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import effv2_kernels
from effv2_kernels.errors import UnavailableError

_IMPORT = """
import time, torch
start = time.perf_counter()
import effv2_kernels
print(time.perf_counter() - start)
"""

# The process that a user has: torch and the model are there, optimize() runs for the first time.
_OPTIMIZE = """
import sys, time, torch, effv2_kernels
from effv2_kernels.shapes import randomise
model = effv2_kernels.create_model(sys.argv[1])
randomise(model)
model(torch.zeros(1, 3, 224, 224))
start = time.perf_counter()
effv2_kernels.optimize(model, verify=False)
print(time.perf_counter() - start)
"""

# In turns, since the times of a shared machine drift.
_VERIFY = """
import json, statistics, sys, time, torch, effv2_kernels
from effv2_kernels.shapes import randomise
model = effv2_kernels.create_model(sys.argv[1])
randomise(model)
image = torch.zeros(1, 3, 224, 224)
def seconds(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
def turn():
    verified = seconds(lambda: effv2_kernels.optimize(model))
    cost = verified - seconds(lambda: effv2_kernels.optimize(model, verify=False))
    return cost, seconds(lambda: model(image))
with torch.no_grad():
    turn()
    cost, eager = zip(*(turn() for _ in range(11)))
print(json.dumps([statistics.median(cost), statistics.median(eager)]))
"""

# Code is loaded beforehand by a small network, so that what is counted is the memory for the weights.
# Writing 5 to clear_refs sets the high-water mark back to what is resident. Pages of the libraries' files
# come and go as the kernel likes, and are left out.
_MEMORY = """
import ctypes, gc, json, re, sys, torch, effv2_kernels
from pathlib import Path
from effv2_kernels.shapes import randomise
from effv2_kernels.reference import Architecture, EfficientFormerV2

def kilobytes(field):
    status = Path("/proc/self/status").read_text()
    return int(re.search(field + r":\\s+(\\d+) kB", status)[1])

small = EfficientFormerV2(Architecture((8, 8, 8, 8), (1, 1, 1, 1), 2, 1), img_size=32, num_classes=8).eval()
effv2_kernels.optimize(small)
model = effv2_kernels.create_model(sys.argv[1])
randomise(model)
weights = sum(t.nbytes for t in [*model.parameters(), *model.buffers()])
gc.collect()
ctypes.CDLL(None).malloc_trim(0)
Path("/proc/self/clear_refs").write_text("5")
before, files, private = kilobytes("VmRSS"), kilobytes("RssFile"), kilobytes("RssAnon")
fast = effv2_kernels.optimize(model, verify=False)
peak = kilobytes("VmHWM") - before - max(0, kilobytes("RssFile") - files)
kept = kilobytes("RssAnon") - private
print(json.dumps([1024 * max(peak, kept), 1024 * kept, weights]))
"""


@dataclass(frozen=True)
class Memory:
    """Bytes that optimize() takes on top of the model that it was given."""

    peak: int  # at the highest point while it runs
    kept: int  # afterwards
    weights: int  # parameters and buffers of the model

    @property
    def peak_over_weights(self) -> float:
        return self.peak / self.weights


def import_seconds(repeats: int = 5) -> float:
    """What ``import effv2_kernels`` adds to ``import torch``: the median over fresh processes."""
    return statistics.median(float(_in_fresh_process(_IMPORT)) for _ in range(repeats))


def optimize_seconds(model: str, repeats: int = 3) -> float:
    """The first optimize() of a named model in a process: the median over fresh processes.

    Without its trial run, which ``verify_seconds`` tells of.
    """
    return statistics.median(float(_in_fresh_process(_OPTIMIZE, model)) for _ in range(repeats))


def verify_seconds(model: str) -> tuple[float, float]:
    """What the trial run adds to an optimize() of a named model, and a plain call of it for one image.

    Medians of eleven turns, in seconds.
    """
    cost, eager = json.loads(_in_fresh_process(_VERIFY, model))
    return cost, eager


def optimize_memory(model: str, repeats: int = 3) -> Memory:
    """Memory that optimize(verify=False) needs for a named model: the median, by peak, over fresh processes.

    Raises UnavailableError where there is no Linux /proc.
    """
    if not Path("/proc/self/clear_refs").exists():
        raise UnavailableError("the peak of memory is read from /proc/self/status, which only Linux has.")
    # glibc keeps what is freed, by chance 0.2 to 0.8 times the weights, but gives large pieces back at once.
    pieces = {"MALLOC_MMAP_THRESHOLD_": "65536"}
    found = [Memory(*json.loads(_in_fresh_process(_MEMORY, model, more=pieces))) for _ in range(repeats)]
    return sorted(found, key=lambda memory: memory.peak)[repeats // 2]


def _in_fresh_process(code: str, *arguments: str, more: Mapping[str, str] | None = None) -> str:
    # The package that runs here is the one to measure, also where it is not installed.
    paths = [str(Path(effv2_kernels.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), **(more or {})}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment, check=False
    )
    if done.returncode != 0:
        raise UnavailableError(f"a measurement in a process of its own failed:\n{done.stderr.strip()}")
    return done.stdout.strip().splitlines()[-1]
