"""CUDA kernels with planted faults, each of which the tests of make test-cuda-emulated must find.

Run by make test-cuda-mutations, or for some of them by name:
    python tests/cuda_faults.py BUILD [NAME ...]

BUILD: a build folder with the emulated module, whose other objects are linked with the faulty kernels.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "csrc" / "cuda"
EMULATOR = ROOT / "csrc" / "tests" / "cuda"

CXX = os.environ.get("CXX", "g++")
OPTIONS = ["-std=c++17", "-O1", "-w", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-fno-math-errno"]


@dataclass(frozen=True)
class Fault:
    """A passage of a file below csrc/cuda that is replaced by another one.

    unit: what is compiled anew, of launch.cpp, all kernels, and schedule.cpp, who waits for whom.
    """

    name: str
    file: str
    old: str
    new: str
    unit: str = "launch"


NONE = Fault("none", "tiles/product.h", "#pragma once\n", "#pragma once\n\n")

FAULTS = [
    # --- Barriers and copies
    Fault(
        "a product without the barrier of its stages",
        "tiles/product.h",
        "      sync();  // this stage is there, and all are done with the one that is filled next\n",
        "",
    ),
    Fault(
        "a product that waits for a stage too few",
        "tiles/product.h",
        "copy_wait<S::kStages - 2>();",
        "copy_wait<S::kStages - 1>();",
    ),
    Fault(
        "sums of a product that are added too early",
        "tiles/product.h",
        "    sync();\n    if (part > 0) return;\n",
        "    if (part > 0) return;\n",
    ),
    Fault(
        "an FFN without the barrier behind fc1",
        "blocks/ffn.h",
        "        widen(p, x, x_stride, depth, now, inside, slice);\n        sync();\n",
        "        widen(p, x, x_stride, depth, now, inside, slice);\n",
    ),
    Fault(
        "a narrow FFN that does not wait for which pixels there are",
        "blocks/ffn.h",
        "      sync();  // inside[] is there\n",
        "",
    ),
    Fault(
        "shared sums of an FFN that are not acquired",
        "blocks/ffn.h",
        "      if (last) acquire_reached(released, before + 1);\n",
        "",
    ),
    Fault(
        "keys of an attention's next round over those that are used",
        "blocks/attention.h",
        "        if (round > 0) {\n          sync();\n",
        "        if (round > 0) {\n",
    ),
    # --- Places
    Fault(
        "an FFN's input that begins a row too low",
        "blocks/ffn.h",
        "load_input(p, buffers, image, top * p.stride - 1, left * p.stride - 1, inside",
        "load_input(p, buffers, image, top * p.stride, left * p.stride - 1, inside",
    ),
    Fault(
        "swapped rows of the left factor",
        "tiles/fragments.h",
        "tile + (lane() % 16) * stride + lane() / 16 * 8",
        "tile + (lane() % 8 + lane() / 16 * 8) * stride + lane() / 8 % 2 * 8",
    ),
    Fault(
        "values of an attention that are not transposed",
        "tiles/heads.h",
        "load_matrices<true>(b, v + lane() % 16 * stride",
        "load_matrices<false>(b, v + lane() % 16 * stride",
    ),
    Fault(
        "a window without its padding",
        "tiles/product.h",
        "      const int before = kernel / 2;\n",
        "      const int before = 0;\n",
    ),
    Fault(
        "a stem whose second convolution is not padded with zeros",
        "blocks/stem.h",
        "if (row >= 0 && row < p.mid_height && column >= 0",
        "if (row < p.mid_height && column >= 0",
    ),
    Fault(
        "keys that do not exist",
        "blocks/attention.h",
        "logits[h][i] = exists[i % 2] ? logits[h][i] : kMinusInfinity;",
        "logits[h][i] = logits[h][i];",
    ),
    Fault(
        "columns beyond the outputs",
        "tiles/output.h",
        "if (column_ >= outputs_) return false;",
        "if (column_ > outputs_) return false;",
    ),
    Fault(
        "a value behind an image's patch, times the weight zero",
        "tiles/image.h",
        "apart[i] = pair < 3 * kPairsInRow ?",
        "apart[i] = pair < 4 * kPairsInRow ?",
    ),
    # --- The one launch
    Fault(
        "a flag that is raised before its rows are there",
        "network.h",
        "      sync();\n      for (int f = thread(); f < task.made.count",
        "      for (int f = thread(); f < task.made.count",
    ),
    Fault(
        "a task that waits for the first of its maps alone",
        "network.h",
        "for (int i = 0; i < Reach::kMost; ++i) {\n          for (int f = thread()",
        "for (int i = 0; i < 1; ++i) {\n          for (int f = thread()",
    ),
    Fault(
        "flags of the launch before",
        "network.h",
        "launch * load_constant<std::uint32_t>(parts + flag)",
        "(launch - 1) * load_constant<std::uint32_t>(parts + flag)",
    ),
    Fault(
        "a task's memory that is not given out again",
        "network.h",
        "run_step(held[turn].step, buffers, task.tile, shared.rest(), [&] {",
        "run_step(held[turn].step, buffers, task.tile, shared, [&] {",
    ),
    Fault(
        "the step of a task before it has come",
        "network.h",
        "      sync();\n      if (load<int>(state) >= n.tasks) return;",
        "      if (load<int>(state) >= n.tasks) return;",
    ),
    # --- The schedule
    Fault(
        "a window's last row that is not waited for",
        "reach.h",
        "row(made.last, kernel - 1)",
        "row(made.last, kernel - 2)",
        "schedule",
    ),
    Fault(
        "a residual that is not waited for",
        "tiles/product.h",
        "    return reach.and_reads(p.residual, made);\n",
        "    return reach;\n",
        "schedule",
    ),
    Fault(
        "an enlarged map whose first row is not waited for",
        "tiles/product.h",
        "reach.and_reads(p.x, {row(made.first, -1), row(made.last, 1)});",
        "reach.and_reads(p.x, {row(made.last, 1), row(made.last, 1)});",
        "schedule",
    ),
    Fault(
        "flags that have fewer parts",
        "schedule.cpp",
        "for (int f = 0; f < task.made.count; ++f) ++made.parts",
        "for (int f = 0; f < 1; ++f) ++made.parts",
        "schedule",
    ),
]

# What takes long, and is not needed to find anything.
QUICKLY = "not published and not s0 and not two_images and not many_tokens and not attention-16-s1-9x8"


# Interrupted, an error of pytest's own or in how it was called, and no tests: nothing was found then.
_NOT_RUN = range(2, 6)


def source_with(fault: Fault) -> str:
    """The file with the fault in it."""
    text = (SOURCES / fault.file).read_text(encoding="utf-8")
    count = text.count(fault.old)
    assert count == 1, f"{fault.name}: {fault.file} has that passage {count} times"
    return text.replace(fault.old, fault.new)


class Builder:
    """Emulated modules in folders of their own."""

    def __init__(self, build: Path) -> None:
        self._objects = build / "csrc" / "tests" / "cuda" / "CMakeFiles"
        self.folder = build / "cuda_faults"
        self._whole = self._compiled("whole", SOURCES, "launch", "schedule")

    def _compiled(self, name: str, sources: Path, *units: str) -> dict[str, Path]:
        made = {}
        for unit in units:
            source = EMULATOR / "launch.cpp" if unit == "launch" else sources / "schedule.cpp"
            made[unit] = self.folder / name / f"{unit}.o"
            made[unit].parent.mkdir(parents=True, exist_ok=True)
            includes = (f"-I{folder}" for folder in (sources.parent, ROOT / "csrc", EMULATOR))
            command = [CXX, *OPTIONS, *includes, "-c", source, "-o", made[unit]]
            subprocess.run(command, check=True)
        return made

    def build(self, fault: Fault) -> Path:
        """The folder of a module with this fault."""
        name = re.sub(r"\W+", "_", fault.name)
        folder = self.folder / name
        sources = folder / "csrc" / "cuda"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(SOURCES, sources)
        (sources / fault.file).write_text(source_with(fault), encoding="utf-8")
        objects = {**self._whole, **self._compiled(name, sources, fault.unit)}
        others = [
            path
            for path in self._objects.rglob("*.o")
            if path.relative_to(self._objects).parts[0] in ("_cuda_emulated.dir", "effv2_cuda_emulator.dir")
            and path.name not in ("launch.cpp.o", "schedule.cpp.o")
        ]
        module = folder / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
        command = [CXX, "-shared", "-o", module, *objects.values(), *others]
        subprocess.run(command, check=True)
        return folder


def found_by(folder: Path) -> str | None:
    """The first test that finds something, and what; None where none does."""
    tests = sorted(path for path in (ROOT / "tests").glob("test_cuda_*.py"))
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-k", QUICKLY, *tests]
    ran = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "EFFV2_TEST_CUDA": str(folder)}, capture_output=True, text=True
    )
    if ran.returncode == 0:
        return None
    if ran.returncode in _NOT_RUN:
        raise RuntimeError(f"pytest could not run ({ran.returncode}): {(ran.stderr or ran.stdout)[-500:]}")
    failed = re.search(r"^(?:FAILED|ERROR) \S*?(test_\w+\.py::\S+)", ran.stdout, re.MULTILINE)
    said = re.findall(r"^E +(?:\w+\.)*(\w.*)", ran.stdout, re.MULTILINE)
    if failed is None:
        return f"the process ended with {ran.returncode}: {(ran.stderr or ran.stdout)[-200:]}"
    return f"{failed[1]}: {said[0] if said else '?'}"


def main() -> int:
    build, names = Path(sys.argv[1]).resolve(), sys.argv[2:]
    missed = 0
    builder = Builder(build)
    for fault in [NONE, *FAULTS]:
        if names and fault.name not in names:
            continue
        begin = time.monotonic()
        found = found_by(builder.build(fault))
        took = time.monotonic() - begin
        as_it_should = (found is None) == (fault is NONE)
        missed += not as_it_should
        mark = "ok" if as_it_should else "FAILED"
        print(f"{mark:6} {took:4.0f} s  {fault.name}: {found or 'nothing'}", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
