"""LLVM's tools, as `make bench-aarch64` unpacked them: disassembly, and models of processors' pipelines."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.aarch64.instructions import leaves

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "aarch64" / "llvm"
VERSION = 19


def run(tool: str, *arguments: str | Path, given: str | None = None) -> str:
    """What a tool prints."""
    folder = FOLDER / "usr" / "lib" / f"llvm-{VERSION}"
    if not folder.exists():
        raise SystemExit(f"there is no LLVM in {FOLDER}: run make bench-aarch64")
    libraries = ":".join(
        str(path)
        for path in (folder / "lib", FOLDER / "lib/x86_64-linux-gnu", FOLDER / "usr/lib/x86_64-linux-gnu")
    )
    loader = [FOLDER / "lib64/ld-linux-x86-64.so.2", "--library-path", libraries, folder / "bin" / tool]
    done = subprocess.run([*loader, *arguments], input=given, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{tool} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def disassemble(words: Sequence[int]) -> list[str]:
    """A line of assembly for each instruction; branches as distances."""
    given = "\n".join(" ".join(f"0x{byte:02x}" for byte in word.to_bytes(4, "little")) for word in words)
    lines = run("llvm-mc", "--disassemble", "--triple=aarch64", "--mattr=+all", given=given).splitlines()
    lines = [line.strip() for line in lines if not line.strip().startswith(".")]
    if len(lines) != len(words):
        raise SystemExit(f"llvm-mc knows {len(lines)} of {len(words)} instructions")
    return lines


def cycles(codes: Sequence[Sequence[int]], processor: str, rounds: int) -> list[float]:
    """Cycles of each piece of code, run so many times behind itself, by llvm-mca's model of a processor.

    The first rounds, in which the pipeline fills, count as well. Data is in the nearest cache and branches
    are predicted. Calls and returns at the end are left out, of which the model knows nothing; code of which
    it knows no instruction takes a cycle for each.
    """
    pieces = [code[:-1] if code and leaves(code[-1]) else code for code in codes]
    lines = iter(disassemble([word for piece in pieces for word in piece]))
    regions = []
    for i, piece in enumerate(pieces):
        body = [part for _ in piece for part in split_update(next(lines))]
        regions += [f"# LLVM-MCA-BEGIN {i}", *(body or ["nop"]), "# LLVM-MCA-END"]
    options = ("--march=aarch64", f"--mcpu={processor}", f"--iterations={rounds}", "--json")
    # Some of the few instructions that threads share memory by are in no model.
    options += ("--skip-unsupported-instructions=lack-sched",)
    found = parse_cycles(run("llvm-mca", *options, given="\n".join(regions) + "\n"))
    return [found.get(str(i), len(code)) for i, code in enumerate(codes)]


def split_update(line: str) -> tuple[str, ...]:
    """A store that also moves its address, as what cores make of it.

    The model lets the address wait for the data, and whatever uses it next as well.
    """
    found = re.fullmatch(r"(st\w+\s.*)\[(x\d+|sp)(\], |, )(#?-?\w+)(\]!|)", line)
    if not found or (found[3] == ", ") != bool(found[5]):
        return (line,)
    store, address, distance = f"{found[1]}[{found[2]}]", found[2], found[4]
    operation = "sub" if distance.startswith("#-") else "add"
    move = f"{operation} {address}, {address}, {distance.replace('-', '')}"
    return (move, store) if found[5] else (store, move)


def parse_cycles(text: str) -> dict[str, float]:
    """Cycles of one round of every region in llvm-mca's JSON, by the region's name."""
    answer: dict[str, Any] = json.loads(text)
    return {
        region["Name"]: region["SummaryView"]["TotalCycles"] / region["SummaryView"]["Iterations"]
        for region in answer["CodeRegions"]
    }


@dataclass(frozen=True)
class Function:
    """A function of an object file. name: demangled."""

    name: str
    address: int
    words: tuple[int, ...]


def functions(file: Path) -> list[Function]:
    """All functions of an object file."""
    return parse_functions(run("llvm-objdump", "--disassemble", "--demangle", file))


def parse_functions(text: str) -> list[Function]:
    """All functions in what llvm-objdump prints."""
    found: list[Function] = []
    name, address, words = "", 0, list[int]()
    for line in [*text.splitlines(), "0 <>:"]:
        if head := re.fullmatch(r"([0-9a-f]+) <(.*)>:", line):
            if words:
                found.append(Function(name, address, tuple(words)))
            name, address, words = head[2], int(head[1], 16), []
        elif row := re.match(r"\s*[0-9a-f]+: ([0-9a-f]{8})\s", line):
            words.append(int(row[1], 16))
    return found
