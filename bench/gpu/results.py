"""What was found so far, on disk after every step, so that a process may end at any moment.

One JSON object:

    environment      device, versions and commit; figures of another environment are never mixed with these
    date             of the last figure, UTC
    wanted           the keys of all steps of the last call: what is missing in the sections is not done
    parity           by key, the rows of ``parity.Parity``
    speed            by "variant batch", what ``speed.measure`` returns
    compile_seconds  by "variant batch", until torch.compile was ready
    untuned          by "variant batch", milliseconds of a call before tuning
    tuned            by "variant batch", the seconds in which all tiles were measured, or why they were not
    tile_ms          by key of a launch, the milliseconds of each tile that was measured
    cpu              by "variant batch threads", what ``scaling.measure`` returns
    wrappers         under "all", what ``wrappers.run`` returns; the CUDA kernels' parity is in "parity"
    cuda             by "variant batch", what ``cuda_speed.measure`` returns
    cuda_untuned     by "variant batch", milliseconds of each way to launch before tuning
    cuda_tuned       as tuned
    ffn              by "variant batch", what ``cuda_speed.ffn_ways`` returns
    sanitizer        by tool, what ``sanitizer.run`` returns
    targets          ``targets.judged``
    now              [step, key] of what is under way, null between steps. Steps are "parity", "untuned",
                     "tuned", "speed" (without torch.compile), "compile" (the same with it) and "cpu", and
                     of CUDA the names of its sections
"""

from __future__ import annotations

import itertools
import json
import platform
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from bench.gpu import prepared
from bench.gpu.prepared import ROOT
from bench.gpu.targets import judged

SECTIONS = ("parity", "speed", "compile_seconds", "untuned", "tuned", "tile_ms", "cpu", "wanted")
_CUDA = ("wrappers", "cuda", "cuda_untuned", "cuda_tuned", "ffn", "sanitizer")
SECTIONS += _CUDA
_STEPS = ("parity", "speed", "untuned", "tuned", "cpu", *_CUDA)
_MEASURING = ("cuda_parity", "cuda_speed", "models", "parity", "scaling", "speed", "timing")
# What belongs to one model and batch.
_OF_A_PAIR = ("speed", "compile_seconds", "untuned", "tuned")
# Where the code comes from says nothing about the figures; what it is does, and "sources" says that.
_NOT_COMPARED = ("commit", "changed_files")


class Results:
    """The file OUT/gpu.json of one environment.

    What is there of another environment, or cannot be read, is renamed to gpu.<n>.json and left alone.
    """

    def __init__(self, folder: Path, environment: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "gpu.json"
        self.data: dict[str, Any] = {"environment": environment, "now": None}
        earlier = read(self.path)
        if earlier is not None and _compared(earlier["environment"]) == _compared(environment):
            self.data = {**earlier, **self.data}
        elif self.path.exists():
            free = (folder / f"gpu.{n}.json" for n in itertools.count(1))
            self.path.rename(next(path for path in free if not path.exists()))
        for section in SECTIONS:
            self.data.setdefault(section, {})

    def begin(self, step: str, key: str) -> None:
        """Whatever ends the process now, the file says during what."""
        self.data["now"] = [step, key]
        self.save()

    def add(self, step: str, key: str, value: Any) -> None:
        """Record what a step found. Raises ValueError, and records nothing, where JSON cannot hold it."""
        _json(value)
        self.data["speed" if step == "compile" else step][key] = value
        self.data["now"] = None
        self.save()

    def end(self) -> None:
        """The step that began has found nothing."""
        self.data["now"] = None
        self.save()

    def fail(self, step: str, key: str, reason: str) -> None:
        """Record why a step found nothing; it is not tried again."""
        _fail(self.data, step, key, reason)
        self.save()

    def save(self) -> None:
        write(self.path, self.data)


def read(path: Path) -> dict[str, Any] | None:
    """The contents of a gpu.json, None where there is none or it is something else."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return data if isinstance(data, dict) and isinstance(data.get("environment"), dict) else None


def write(path: Path, data: dict[str, Any]) -> None:
    """Whole or not at all. Sets the date and the targets."""
    data |= {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "targets": judged(data.get("speed", {}), data.get("cuda", {})),
    }
    entries = (f"{_json(name)}: {_section(value)}" for name, value in data.items())
    text = "{\n" + ",\n".join(entries) + "\n}\n"
    new = path.with_suffix(".new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)


def _section(value: Any) -> str:
    """One line for each entry."""
    if isinstance(value, dict) and value:
        return "{\n" + ",\n".join(f" {_json(key)}: {_json(entry)}" for key, entry in value.items()) + "\n}"
    return _json(value)


def _json(value: Any) -> str:
    return json.dumps(value, allow_nan=False)


def blame(path: Path, reason: str) -> bool:
    """Record that the step under way ended its process; False where none was under way."""
    data = read(path)
    if data is None or not data.get("now"):
        return False
    section, key = data["now"]
    _fail(data, section, key, reason)
    write(path, data)
    return True


def hand_over(data: dict[str, Any], key: str, folder: Path) -> None:
    """What is known of one pair, for a process that goes on with it in a folder of its own.

    What such a process has left there in the same environment, because it or its caller was ended, is kept.
    """
    path = folder / "gpu.json"
    folder.mkdir(parents=True, exist_ok=True)
    earlier = read(path)
    if earlier is None or _compared(earlier["environment"]) != _compared(data["environment"]):
        known = {section: {key: data[section][key]} for section in _OF_A_PAIR if key in data.get(section, {})}
        write(path, {"environment": data["environment"], "now": None, **known})


def take_over(data: dict[str, Any], folder: Path) -> None:
    """Add what the process in ``folder`` has found to the results of all."""
    found = read(folder / "gpu.json") or {}
    for section in (*_OF_A_PAIR, "tile_ms"):
        data.setdefault(section, {}).update(found.get(section, {}))


def has_rival(row: dict[str, Any]) -> bool:
    """Whether torch.compile was measured beside a figure of "speed", or was refused."""
    return "compile" in row.get("ms", ()) or "compile" in row.get("refused", ())


def forget(path: Path) -> None:
    """The step that an earlier call had no time for is nobody's fault."""
    data = read(path)
    if data is not None and data.get("now"):
        write(path, {**data, "now": None})


def steps_done(path: Path) -> int:
    """How many steps a gpu.json has results or failures of."""
    data = read(path) or {}
    rivals = sum(map(has_rival, data.get("speed", {}).values()))
    return rivals + sum(len(data.get(section, ())) for section in _STEPS)


def _fail(data: dict[str, Any], step: str, key: str, reason: str) -> None:
    if step == "parity":
        row = {"what": key, "dtype": "", "bound": 0.0, "error": None, "failure": reason, "ok": False}
        data["parity"][key] = [row]
    elif step in ("speed", "cpu", "cuda", "wrappers", "ffn", "sanitizer"):
        data[step][key] = {**data[step].get(key, {}), "failure": reason}
    elif step == "compile":
        data["speed"].setdefault(key, {}).setdefault("refused", {})["compile"] = reason
    else:
        data[step][key] = reason
    data["now"] = None


def _compared(environment: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in environment.items() if name not in _NOT_COMPARED}


def environment(device: Any = None, commit: str | None = None, cuda: str | None = None) -> dict[str, Any]:
    """Device, versions and commit.

    device: a torch.device of type cuda; None leaves it out. commit: where there is no git to ask. cuda: the
    folder of prepare.py, where its CUDA kernels are measured.
    """
    import torch
    import triton

    import effv2_kernels

    found: dict[str, Any] = {
        "format": 1,
        "effv2_kernels": effv2_kernels.__version__,
        "commit": commit or git("rev-parse", "HEAD") or "unknown",
        "changed_files": git("status", "--porcelain", "--untracked-files=no").splitlines(),
        "sources": fingerprint(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }
    if cuda is not None:
        found["cuda_kernels"] = prepared.digest(Path(cuda))
    if device is not None:
        of = torch.cuda.get_device_properties(device)
        found |= {
            "device": of.name,
            "capability": f"{of.major}.{of.minor}",
            "multiprocessors": of.multi_processor_count,
            "memory_bytes": of.total_memory,
            "l2_bytes": of.L2_cache_size,
        }
    return found


def fingerprint(root: Path = ROOT) -> str:
    """Of every file that decides about the figures: the package, its tables of tiles, and what measures."""
    files = [path for path in (root / "effv2_kernels").rglob("*") if path.suffix in (".py", ".json")]
    files += [root / "bench" / "gpu" / f"{name}.py" for name in _MEASURING]
    return prepared.hash_of(files, root)


def git(*arguments: str) -> str:
    """What git prints, without the last newline; "" where there is no git or this is no checkout."""
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.rstrip() if done.returncode == 0 else ""
