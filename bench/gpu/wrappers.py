"""The wrappers of csrc/cuda/device.h on a GPU: a program of its own, compiled ahead, asked before all else.

If one of them does not do what kernels take it to do, nothing that is built on them is worth running.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

# They take a second, of which CUDA's start is most.
SECONDS = 60.0

_LINE = re.compile(r"(ok|FAILED)\s+(.*)")
_KEPT = 1000  # characters of what is said beside them


def run(program: Path, seconds: float = SECONDS) -> dict[str, Any]:
    """Each wrapper's name with what is wrong, "" for nothing; ``failure`` where not all of them are right."""
    try:
        done = subprocess.run(
            [program.resolve()], capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired as late:
        said = late.stdout or b""
        tests = found_in(said.decode(errors="replace") if isinstance(said, bytes) else said)
        return {"tests": tests, "failure": f"the wrappers did not end within {seconds:g} s"}
    except OSError as error:
        return {"tests": {}, "failure": f"{program} cannot be run: {error.strerror}"}
    tests = found_in(done.stdout)
    wrong = [name for name, error in tests.items() if error]
    failure = ""
    if wrong:
        failure = f"{len(wrong)} of {len(tests)} wrappers are wrong: {', '.join(wrong)}"
    elif done.returncode != 0 or not tests:
        failure = f"the wrappers ended with exit code {done.returncode}: {done.stderr.strip()[-_KEPT:]}"
    return {"tests": tests, **({"failure": failure} if failure else {})}


def found_in(text: str) -> dict[str, str]:
    """By wrapper, what the program says is wrong with it."""
    tests = {}
    for line in text.splitlines():
        found = _LINE.fullmatch(line.strip())
        if found:
            name, _, error = found[2].partition(": ")
            tests[name] = "" if found[1] == "ok" else error or "wrong"
    return tests
