"""What the compiler makes of each CUDA kernel: registers, memory for those that it lacks, and instructions.

python scripts/compiled_kernels.py [--architectures 80 90]: compile for these, and compare with the record,
tests/compiled_kernels.json
python scripts/compiled_kernels.py --record: compile for all that wheels have, and record it, also as
docs/kernels.md, if it has no faults

Whatever is recorded, a kernel may not spill registers or have a stack, and must have the instructions that it
was written for: products of tensor cores (HMMA), their operands by matrices (LDSM), and copies to shared
memory that nobody waits for (LDGSTS). Needs nvcc, NVIDIA's disassembler (the PyPI package
nvidia-cuda-nvdisasm), and c++filt.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, fields
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "compiled_kernels"
STEPS = ROOT / "csrc" / "cuda" / "step.h"
RECORD = ROOT / "tests" / "compiled_kernels.json"
PAGE = ROOT / "docs" / "kernels.md"
ARCHITECTURES = ("80", "86", "89", "90", "100", "120")  # of wheels: cmake/cuda.cmake
LEAST = ("80", "90")  # that are recorded, and compared by CI

NETWORK = "network"  # of all kinds of steps, in one launch
ELEMENTWISE = ("DepthwiseTile", "FeatureTile", "MeanTile")
# Classes of kernels that have no use for an instruction, by the instruction's column.
WITHOUT: dict[str, tuple[str, ...]] = dict.fromkeys(("mma", "matrices", "copies"), ELEMENTWISE)

HEAD = """# What the compiler makes of the CUDA kernels

The registers of a thread, instructions in all (every activation is among them, a launch has one), and those
that do the work: products of tensor cores (HMMA), loads of their operands (LDSM) and asynchronous copies to
shared memory (LDGSTS). No kernel spills registers or has a stack. By nvcc {compiler}; `make cuda-table` makes
this page, and `make test-cuda-compiled` holds the code to it.
"""


@dataclass(frozen=True)
class Code:
    """One kernel on one architecture."""

    registers: int
    stack: int  # bytes
    spilled: int  # bytes that are stored and loaded
    shared: int  # bytes, beside those that a launch asks for
    instructions: int = 0
    mma: int = 0
    matrices: int = 0
    copies: int = 0


COUNTED = {"mma": "HMMA", "matrices": "LDSM", "copies": "LDGSTS"}
Table = dict[str, dict[str, Code]]  # by architecture, by kernel


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nvcc", default="nvcc")
    parser.add_argument("--architectures", nargs="+", metavar="NUMBER", help="80 90; of a record all")
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    asked = args.architectures or (list(ARCHITECTURES) if args.record else list(LEAST))
    made = compile_all(args.nvcc, asked)
    compiler = version_of(args.nvcc)
    wrong = faults(made)
    if args.record and not wrong:
        RECORD.write_text(as_json(compiler, made), encoding="utf-8")
        PAGE.write_text(page(compiler, made), encoding="utf-8")
        print(f"wrote {RECORD.relative_to(ROOT)} and {PAGE.relative_to(ROOT)}")
    elif not args.record:
        recorded_by, recorded = read_record()
        if compiler == recorded_by:
            wrong += differences(recorded, made)
        else:
            print(f"not compared: the record is of nvcc {recorded_by}, and this is {compiler}")
    for line in wrong:
        print(line)
    kernels = sum(map(len, made.values()))
    print(f"{kernels} kernels for sm_{', sm_'.join(made)}: {len(wrong) or 'no'} faults")
    return 1 if wrong else 0


def names_in_steps(array: str) -> list[str]:
    """The names in one of step.h's lists, as cmake/cuda.cmake reads them."""
    found = re.search(rf"{array}\[\] = {{([^}}]*)}}", STEPS.read_text(encoding="utf-8"))
    if not found:
        raise SystemExit(f"{STEPS.relative_to(ROOT)} has no list {array}")
    return re.findall(r'"(\w+)"', found[1])


def version_of(nvcc: str) -> str:
    said = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"V([\d.]+)", said)
    return found[1] if found else said.strip()


def compile_all(nvcc: str, architectures: list[str]) -> Table:
    """Every kernel for each of the architectures, as many compilations at a time as there are processors."""
    BUILD.mkdir(parents=True, exist_ok=True)
    # The longest first.
    jobs = [
        (architecture, kind, form)
        for kind in (NETWORK, *names_in_steps("kKindNames"))
        for architecture in architectures
        for form in names_in_steps("kFormatNames")
    ]
    made: Table = {architecture: {} for architecture in architectures}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for (architecture, _, _), codes in zip(
            jobs, pool.map(lambda job: compile_one(nvcc, *job), jobs), strict=True
        ):
            made[architecture] |= codes
    return made


def compile_one(nvcc: str, architecture: str, kind: str, form: str) -> dict[str, Code]:
    """The kernels of a kind and a format; those of a kind of step, or the one of networks."""
    binary = BUILD / f"{kind}_{form}.sm_{architecture}.cubin"
    command = [nvcc, "-std=c++17", f"-arch=sm_{architecture}", "-Xptxas=-v", f"-I{ROOT / 'csrc'}"]
    command += [f"-DEFFV2_KIND={kind}", f"-DEFFV2_FORMAT={form}", "-cubin", "-o", str(binary)]
    command.append(str(ROOT / "csrc" / "cuda" / ("network.cu" if kind == NETWORK else "kernels.cu")))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}:\n{done.stderr}")
    listing = subprocess.run(
        [program("nvdisasm"), "-c", binary], capture_output=True, text=True, check=True
    ).stdout
    counts = instructions(listing)
    if not counts:
        raise SystemExit(f"there is no kernel of kind {kind} in {form}")
    codes = {
        mangled: Code(**resources, **counts[mangled])
        for mangled, resources in resources_in(done.stderr).items()
    }
    return dict(zip(readable(list(codes)), codes.values(), strict=True))


def program(name: str) -> str:
    """One of NVIDIA's: the toolkit's, or that of its PyPI package."""
    if found := shutil.which(name):
        return found
    package = importlib.util.find_spec("nvidia")
    for folder in (package and package.submodule_search_locations) or []:
        for path in sorted(Path(folder).glob(f"*/bin/{name}")):
            return str(path)
    raise SystemExit(f"there is no {name}: it comes with CUDA, and as the PyPI package nvidia-cuda-{name}")


def resources_in(said: str) -> dict[str, dict[str, int]]:
    """What ptxas -v says of each function, by its mangled name."""
    found = {}
    for part in said.split("Compiling entry function ")[1:]:
        name = part.split("'")[1]
        frame = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part)
        registers = re.search(r"Used (\d+) registers", part)
        if not frame or not registers:
            raise SystemExit(f"ptxas says nothing of {name}:\n{part}")
        shared = re.search(r"(\d+) bytes smem", part)
        found[name] = {
            "registers": int(registers[1]),
            "stack": int(frame[1]),
            "spilled": int(frame[2]) + int(frame[3]),
            "shared": int(shared[1]) if shared else 0,
        }
    return found


def instructions(listing: str) -> dict[str, dict[str, int]]:
    """How many instructions each function has, padding aside, and how many of those that are counted."""
    counts: dict[str, dict[str, int]] = {}
    here: dict[str, int] = {}
    for line in listing.splitlines():
        if line.startswith(".text.") and line.endswith(":"):
            here = counts.setdefault(line[6:-1], dict.fromkeys(("instructions", *COUNTED), 0))
        elif found := re.match(r"\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+ )?([A-Z]\w*)", line):
            here["instructions"] += found[1] != "NOP"
            for column, name in COUNTED.items():
                here[column] += found[1] == name
    return counts


def readable(mangled: list[str]) -> list[str]:
    """Of a kernel, what it is a template of: ProductTile<Half, PixelsOf, ProductShape<4, 2, 1, 2, 32, 4>>."""
    done = subprocess.run(["c++filt"], input="\n".join(mangled), capture_output=True, text=True, check=True)
    names = []
    for line in done.stdout.splitlines():
        text = line.replace("(anonymous namespace)::", "").replace("effv2::cuda::", "").removeprefix("void ")
        for cuda, ours in (("__half", "Half"), ("__nv_bfloat16", "Bf16")):
            text = text.replace(cuda, ours)
        found = re.match(r"\w+<(.*?)>\(", text)
        names.append((found[1] if found else text.split("(")[0]).strip().replace("> >", ">>"))
    return names


def faults(made: Table) -> list[str]:
    """What no kernel may have, or lack."""
    found = []
    for architecture, kernels in made.items():
        for name, code in kernels.items():
            at = f"sm_{architecture}: {name}"
            if code.stack:
                found.append(f"{at} has a stack of {code.stack} bytes")
            if code.spilled:
                found.append(f"{at} spills registers: {code.spilled} bytes are stored and loaded")
            if code.shared:
                found.append(f"{at} has {code.shared} bytes of shared memory beside what launches give it")
            found += [
                f"{at} has no {instruction}"
                for column, instruction in COUNTED.items()
                if not getattr(code, column) and not name.startswith(WITHOUT[column])
            ]
    return found


def differences(recorded: Table, made: Table) -> list[str]:
    found = []
    for architecture, kernels in made.items():
        before = recorded.get(architecture, {})
        for name in sorted(before.keys() | kernels.keys()):
            at = f"sm_{architecture}: {name}"
            if name not in kernels or name not in before:
                found.append(f"{at} is {'not compiled' if name not in kernels else 'not recorded'}")
                continue
            found += [
                f"{at}: {field.name} {was} -> {now}"
                for field, was, now in zip(
                    fields(Code), astuple(before[name]), astuple(kernels[name]), strict=True
                )
                if was != now
            ]
    if found:
        found.append("if this was meant: make cuda-table")
    return found


def as_json(compiler: str, made: Table) -> str:
    """A line for each kernel."""
    parts = []
    for architecture, kernels in made.items():
        lines = [f"   {json.dumps(name)}: {json.dumps(astuple(kernels[name]))}" for name in sorted(kernels)]
        parts.append(f'  "{architecture}": {{\n' + ",\n".join(lines) + "\n  }")
    columns = json.dumps([field.name for field in fields(Code)])
    tables = ",\n".join(parts)
    return f'{{\n "compiler": "{compiler}",\n "columns": {columns},\n "kernels": {{\n{tables}\n }}\n}}\n'


def read_record() -> tuple[str, Table]:
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    tables = {
        architecture: {
            name: Code(**dict(zip(record["columns"], row, strict=True))) for name, row in kernels.items()
        }
        for architecture, kernels in record["kernels"].items()
    }
    return record["compiler"], tables


def page(compiler: str, made: Table) -> str:
    architectures = list(made)
    heads = ["kernel", *(f"registers, sm_{a}" if a == architectures[0] else f"sm_{a}" for a in architectures)]
    shown = [architectures[0], architectures[-1]]
    heads += [f"instructions, sm_{a}" for a in shown] + [
        f"{name}, sm_{shown[0]}" for name in COUNTED.values()
    ]
    lines = [f"| {' | '.join(heads)} |", "| --- |" + " ---: |" * (len(heads) - 1)]
    for name in sorted(made[shown[0]]):
        codes = {architecture: made[architecture][name] for architecture in architectures}
        cells: list[object] = [
            f"`{name}`",
            *(codes[architecture].registers for architecture in architectures),
        ]
        cells += [codes[architecture].instructions for architecture in shown]
        cells += [getattr(codes[shown[0]], column) for column in COUNTED]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return HEAD.format(compiler=compiler) + "\n" + "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
