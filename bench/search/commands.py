"""The commands of a study, as a user would type them; what is done already is not done again."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.search.settings import ROOT, Setting


@dataclass(frozen=True)
class Command:
    """words: behind ``python -m effv2_kernels``. stamp: a file that is there once it is done.

    processes: started by torchrun; threads: of each.
    """

    words: Sequence[str]
    stamp: Path
    processes: int = 1
    threads: int = 1

    @property
    def text(self) -> str:
        return shlex.join(["python", *self._options()])

    def _options(self) -> list[str]:
        start = ["-m", "torch.distributed.run", "--nproc_per_node", str(self.processes)]
        return [*(start if self.processes > 1 else []), "-m", "effv2_kernels", *self.words]


def run(command: Command) -> float:
    """Run it, beside the stamp a log of what it says; the seconds that it took, 0 where it was done before.

    Exits with the last lines of the log where it fails.
    """
    if command.stamp.exists():
        return 0.0
    command.stamp.parent.mkdir(parents=True, exist_ok=True)
    print(f"$ {command.text}", flush=True)
    log = command.stamp.with_suffix(".log")
    begun = time.monotonic()
    with log.open("a", encoding="utf-8") as file:
        done = subprocess.run(
            [sys.executable, *command._options()],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": str(command.threads)},
            stdout=file,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode:
        tail = "\n".join(log.read_text(encoding="utf-8").splitlines()[-15:])
        raise SystemExit(f"this command failed ({done.returncode}), see {log}:\n{command.text}\n{tail}")
    command.stamp.touch()
    return time.monotonic() - begun


def run_together(commands: Sequence[Command]) -> list[float]:
    """As many at a time as there are cores, one thread for each: faster than one after the other."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return list(pool.map(run, commands))


def data_of(setting: Setting) -> list[str]:
    return ["--data", str(setting.data), *(["--dataset", setting.dataset] if setting.dataset else [])]


def recipe_of(values: Mapping[str, Any]) -> list[str]:
    return [word for name, value in values.items() for word in ("--set", f"{name}={value}")]
