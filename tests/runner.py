"""``effv2-run`` as tests call it, and the networks that they give it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from c_library import BUILD

from effv2_kernels import blocks, save, shapes
from effv2_kernels.backends import Settings
from effv2_kernels.declaration import Layer
from effv2_kernels.model import OptimizedModel

# That of `make c-library`.
PROGRAM = BUILD / "effv2-run"

# What goes wrong, by exit code; effv2-run --help lists them.
FAILED, USAGE, FILE, NETWORK, VERSION, UNAVAILABLE, SIZE, MEMORY, OVERFLOW, INPUT = range(1, 11)


@dataclass(frozen=True)
class Done:
    """How a run ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out)

    def refused(self, code: int, *words: str) -> None:
        """It ended with this code and one line on stderr, of these words, and wrote nothing else."""
        assert (self.code, self.out) == (code, ""), f"{self.code}: {self.out}{self.err}"
        assert self.err.startswith("effv2-run: ")
        assert self.err.count("\n") == 1
        for word in words:
            assert word in self.err, self.err


def run(
    *arguments: object, prefix: Sequence[object] = (PROGRAM,), timeout: float = 120, **options: Any
) -> Done:
    """prefix: the program, and what it is started with. One run, without warm-up, unless arguments ask."""
    few = [] if "--repeat" in arguments else ["--repeat", 1]
    few += [] if "--warmup" in arguments else ["--warmup", 0]
    command = [str(part) for part in (*prefix, *arguments, *few)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout, **options)
    return Done(done.returncode, done.stdout, done.stderr)


def outputs(folder: Path, network: Path, *arguments: object, **options: Any) -> list[torch.Tensor]:
    """What it writes."""
    for old in folder.glob("y*.npy"):
        old.unlink()
    done = run(network, *arguments, "--output", folder / "y.npy", "--json", **options)
    files = sorted(folder.glob("y*.npy"))
    assert len(done.json["outputs"]) == len(files)
    found = [torch.from_numpy(np.load(file)) for file in files]
    assert [list(y.shape) for y in found] == done.json["outputs"]
    return found


def write(path: Path, x: torch.Tensor) -> Path:
    np.save(path, x.contiguous().numpy())
    return path


def save_identity(path: Path, channels: int = 3) -> Path:
    """A network that returns its images as they are, of any size."""
    layer = Layer(torch.eye(channels).reshape(channels, channels, 1, 1), torch.zeros(channels))
    network = blocks.Network((blocks.Conv(layer),), ("identity",), (blocks.Feature(0),))
    save(OptimizedModel(network, Settings()), path)
    return path


def save_overflowing(path: Path) -> Path:
    """A network whose values leave fp16 while it runs."""
    shape = shapes.conv(3, 3, 8, 8, kernel=1)
    block = shapes.random_block(shape, torch.Generator().manual_seed(1))
    layer = Layer(torch.full_like(block.conv.weight, 60000), torch.zeros_like(block.conv.bias))
    network = blocks.Network((blocks.Conv(layer),), ("large",), (blocks.Feature(0),))
    save(OptimizedModel(network, Settings()), path)
    return path
