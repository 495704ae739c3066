"""A network run once under QEMU, by this package or by ncnn, and what was executed meanwhile."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.aarch64.emulated import ABSENT
from bench.aarch64.instructions import Block, read_blocks
from bench.aarch64.networks import Files

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "aarch64"
PLUGIN = FOLDER / "executed_blocks.so"
PROGRAM = ROOT / "bench" / "aarch64" / "emulated.py"
# Where the engines are, beside NumPy for Arm: what their instructions depend on.
PACKAGES = {"effv2": FOLDER / "project", "ncnn": FOLDER / "rivals"}
CPU = "cortex-a76"  # the middle cores of a Pixel 6: halves and dot products, no SVE
# Relative L2 of the logits, beyond which nothing is counted.
BOUNDS = {("effv2", "fp32"): 1e-6, ("effv2", "fp16"): 2e-2, ("ncnn", "fp32"): 1e-4, ("ncnn", "fp16"): 2e-2}


@dataclass(frozen=True)
class Run:
    """What one call executed. error: relative L2 of its logits."""

    error: float
    blocks: list[Block]


def count(files: Files, engine: str, fmt: str) -> Run | str:
    """A network in one engine, or why it does not run there; remembered until one of them changes.

    Exits where the logits are wrong.
    """
    folder = FOLDER / "counted"
    folder.mkdir(exist_ok=True)
    stem = f"{engine}-{fmt}-{files.name}"
    executed, answer = folder / f"{stem}.blocks", folder / f"{stem}.json"
    key = _digest([PLUGIN, PROGRAM, *files.of(engine), *sorted(PACKAGES[engine].rglob("*.so"))])
    known = json.loads(answer.read_text()) if answer.exists() else {}
    if known.get("key") != key:
        known = {"key": key, **_run(files, engine, fmt, executed)}
        answer.write_text(json.dumps(known))
    if "absent" in known:
        return str(known["absent"])
    return Run(known["error"], read_blocks(executed))


def _run(files: Files, engine: str, fmt: str, executed: Path) -> dict[str, object]:
    output = executed.with_suffix(".npy")
    network = files.effv2 if engine == "effv2" else files.ncnn
    python = FOLDER / "sysroot/usr/bin/python3.11"
    emulator = [ROOT / "scripts/on_aarch64.sh", CPU, "-plugin", f"{PLUGIN},out={executed}", python, "-P"]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (PACKAGES[engine], FOLDER / "site"))),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    command = [*emulator, PROGRAM, engine, fmt, network, files.image, output]
    executed.unlink(missing_ok=True)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode == ABSENT:
        return {"absent": done.stdout.strip()}
    if done.returncode or not executed.exists():
        raise SystemExit(
            f"{engine} {fmt} {files.name} failed under QEMU:\n{(done.stdout + done.stderr)[-2000:]}"
        )
    logits, expected = np.load(output).astype(np.float64), np.load(files.logits)
    error = float(np.linalg.norm(logits - expected) / np.linalg.norm(expected))
    if not error <= BOUNDS[engine, fmt]:
        raise SystemExit(f"{engine} {fmt} {files.name} is wrong: relative L2 {error:.1e}")
    return {"error": error}


def _digest(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
