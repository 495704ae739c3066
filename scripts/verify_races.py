"""Have the PTX of small CUDA launches proved free of races, as a second opinion beside the emulator's watch.

python scripts/verify_races.py [--nvcc PATH]

SentryWard (the PyPI package sentryward, alpha) executes PTX symbolically for every thread, and asks of each
pair of accesses to the same bytes what orders them. The launches are those of csrc/tests/cuda/races.cu;
barriers that are taken away there, one at a time, must be missed. It takes no launch whose copies depend on
what was read from memory (a product's window, the second half of an FFN), knows no flags between blocks, and
comes to no end with the attention whose heads are mixed.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "races"
LAUNCHES = ROOT / "csrc" / "tests" / "cuda" / "races.cu"
SECONDS = 500
SHARED_BYTES = 100_000


@dataclass(frozen=True)
class Fault:
    """A barrier that a launch needs: what is behind it, and the text around it that its header has once."""

    behind: str
    header: str
    text: str
    launch: str


FAULTS = (
    Fault("the next stage", "tiles/product.h", "sync();  // this stage is there", "product_pixels"),
    Fault(
        "the last stage", "tiles/product.h", "sync();  // all are done with what lay there", "product_pixels"
    ),
    Fault("the convolution", "blocks/ffn.h", "sync();\n        narrow(p, made, now, sums);", "ffn_whole"),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nvcc", default="nvcc")
    args = parser.parse_args()
    BUILD.mkdir(parents=True, exist_ok=True)
    wrong = 0

    def expect(expected: str, launch: str, ptx: Path, what: str) -> None:
        nonlocal wrong
        found, why = verdict(ptx, launch)
        wrong += found != expected
        print(f"{'ok    ' if found == expected else 'FAILED'} {launch}{what}: {found}{why}", flush=True)

    ptx = compile_launches(args.nvcc, ROOT / "csrc", BUILD / "races.ptx")
    for launch in launches(ptx.read_text(encoding="utf-8")):
        expect("race_free", launch, ptx, "")
    for number, fault in enumerate(FAULTS):
        folder = BUILD / f"without_{number}"
        plant(fault, folder)
        ptx = compile_launches(args.nvcc, folder, BUILD / f"without_{number}.ptx")
        expect("potential_race", fault.launch, ptx, f" without the barrier behind {fault.behind}")
    return 1 if wrong else 0


def compile_launches(nvcc: str, include: Path, ptx: Path) -> Path:
    # Of the oldest architecture: later ones add nothing that kernels use.
    command = [nvcc, "-std=c++17", "-arch=compute_80", f"-I{include}", "-ptx", "-o", ptx, LAUNCHES]
    subprocess.run(command, check=True)
    return ptx


def launches(ptx: str) -> dict[str, dict[str, object]]:
    """What the verifier is told of each, by name. Parameters are addresses of different buffers."""
    found: dict[str, dict[str, object]] = {}
    blocks = dict(re.findall(r"EFFV2_INSTANCE\((\w+), (\d+)", LAUNCHES.read_text(encoding="utf-8")))
    for name, threads in re.findall(r"\.entry (\w+)\(.*?\.maxntid (\d+)", ptx, re.DOTALL):
        parameters = sorted(set(re.findall(rf"\b{name}_param_\d+\b", ptx)))
        found[name] = {
            "schema": "spverify.kernel-input/v1",
            "entry": name,
            "launch": {
                "grid_dim": [int(blocks[name]), 1, 1],
                "block_dim": [int(threads), 1, 1],
                "cluster_dim": [1, 1, 1],
                "dynamic_shared_bytes": SHARED_BYTES,
            },
            "declarations": [{"parameter": p, "offset": 0, "type": "pointer"} for p in parameters],
        }
    return found


def verdict(ptx: Path, launch: str) -> tuple[str, str]:
    """In a word, and why where it is neither a proof nor a race."""
    from sentryward import verify

    told = BUILD / f"{launch}.json"
    told.write_text(json.dumps(launches(ptx.read_text(encoding="utf-8"))[launch]), encoding="utf-8")
    said = verify(ptx, input=told, timeout_seconds=SECONDS)
    reasons = {str(diagnostic.get("message")) for diagnostic in said["diagnostics"]}
    return said["result"], f" ({'; '.join(sorted(reasons))})" if reasons else ""


def plant(fault: Fault, folder: Path) -> None:
    """The headers in a folder of their own, without the barrier."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "csrc" / "cuda", folder / "cuda")
    header = folder / "cuda" / fault.header
    text = header.read_text(encoding="utf-8")
    if text.count(fault.text) != 1:
        raise SystemExit(
            f"csrc/cuda/{fault.header} has {text.count(fault.text)} times `{fault.text}`, not once"
        )
    header.write_text(text.replace(fault.text, fault.text.replace("sync();", "")), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
