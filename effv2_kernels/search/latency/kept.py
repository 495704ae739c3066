"""Networks to time, which stay in memory from round to round as far as there is room for them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Protocol

from effv2_kernels.families.efficientformer_v2.architecture import Architecture
from effv2_kernels.search.latency.table import Device
from effv2_kernels.search.latency.task import Task


class Running(Protocol):
    """A network on a device."""

    def whole(self) -> float: ...
    def blocks(self) -> tuple[float, ...]: ...


class Clock(Protocol):
    """What times networks of one task; see ``timer``."""

    device: Device
    task: Task

    def runner(self, architecture: Architecture) -> Running: ...
    def room(self) -> float: ...


class Kept:
    """Networks of a clock, each made when it is first asked for.

    They stay while half of the room is left that there was at first. Others are made anew whenever they
    are asked for: that takes longer, and their times are the same, as a clock warms up what it makes.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock, self._least = clock, clock.room() / 2
        self._runners: dict[Architecture, Running] = {}

    def __contains__(self, architecture: Architecture) -> bool:
        return architecture in self._runners

    def __getitem__(self, architecture: Architecture) -> Running:
        kept = self._runners.get(architecture)
        if kept is not None:
            return kept
        runner = self._clock.runner(architecture)
        if self._clock.room() >= self._least:
            self._runners[architecture] = runner
        return runner


def room_in_memory(root: Path = Path("/")) -> float:
    """Bytes that this process can still have, of the machine or of its container. root: of the files."""
    if sys.platform != "linux":  # where nothing tells what others take
        import resource

        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return float(memory - resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    found = 1024.0 * _told(root / "proc/meminfo")["MemAvailable:"]
    limit, used = (root / "sys/fs/cgroup" / name for name in ("memory.max", "memory.stat"))
    if limit.exists() and (most := limit.read_text().strip()) != "max":
        # Pages of files count as well there, and go when something needs the room.
        found = min(found, float(most) - _told(used)["anon"])
    return found


def _told(path: Path) -> dict[str, int]:
    """Numbers by their names, of a file of lines such as "name 12 kB"."""
    lines = (line.split() for line in path.read_text(encoding="ascii").splitlines())
    return {name: int(value) for name, value, *_ in lines}
