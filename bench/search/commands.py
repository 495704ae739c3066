"""The commands of a study, as a user would type them; what is done already is not done again."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.search.settings import ROOT, Setting
from effv2_kernels.replacing import replacing


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
        """As it is typed in the project's folder; it is kept with results, which are of any machine."""
        return shlex.join(["python", *(word.removeprefix(f"{ROOT}{os.sep}") for word in self._options())])

    def _options(self) -> list[str]:
        start = ["-m", "torch.distributed.run", "--nproc_per_node", str(self.processes)]
        return [*(start if self.processes > 1 else []), "-m", "effv2_kernels", *self.words]


@dataclass(frozen=True)
class Done:
    """seconds: of the last start. starts: more than one where it was ended and gone on with."""

    command: str
    seconds: float
    starts: int


def run(command: Command) -> Done:
    """Run it, and write what was done into the stamp; beside it a log of what it says.

    Exits with the last lines of the log where it fails, and where the stamp is of another command.
    """
    if command.stamp.exists():
        done = Done(**json.loads(command.stamp.read_text(encoding="utf-8")))
        if done.command != command.text:
            raise SystemExit(
                f"{command.stamp} is of another command: move the folder away to begin anew.\n"
                f"{done.command}\n{command.text}"
            )
        return done
    command.stamp.parent.mkdir(parents=True, exist_ok=True)
    start = f"$ {command.text}"
    print(start, flush=True)
    log = command.stamp.with_suffix(".log")
    begun = time.monotonic()
    with log.open("a", encoding="utf-8") as file:
        file.write(f"{start}\n")
        file.flush()
        ended = subprocess.run(
            [sys.executable, *command._options()],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": str(command.threads)},
            stdout=file,
            stderr=subprocess.STDOUT,
            check=False,
        )
    lines = log.read_text(encoding="utf-8").splitlines()
    if ended.returncode:
        tail = "\n".join(lines[-15:])
        raise SystemExit(f"this command failed ({ended.returncode}), see {log}:\n{command.text}\n{tail}")
    done = Done(command.text, round(time.monotonic() - begun, 1), lines.count(start))
    with replacing(command.stamp) as part:
        part.write_text(json.dumps(asdict(done), indent=1), encoding="utf-8")
    return done


def run_together(commands: Mapping[str, Command]) -> dict[str, Done]:
    """As many at a time as there are cores, one thread for each: faster than one after the other."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return dict(zip(commands, pool.map(run, commands.values()), strict=True))


def data_of(setting: Setting) -> list[str]:
    return ["--data", str(setting.data), *(["--dataset", setting.dataset] if setting.dataset else [])]


def recipe_of(values: Mapping[str, Any]) -> list[str]:
    return [word for name, value in values.items() for word in ("--set", f"{name}={value}")]
