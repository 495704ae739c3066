"""What is known of one kind of GPU: the fastest tiles, how long blocks take, and which kernels are right."""

from __future__ import annotations

import logging
import re
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from effv2_kernels.gpu.kept import Kept, file_of
from effv2_kernels.gpu.launch import Launch
from effv2_kernels.gpu.tuning import TileTables

_log = logging.getLogger(__name__)

# Where Linux tells the version of NVIDIA's driver.
_DRIVER = Path("/proc/driver/nvidia/version")


# For the checks of kernels in one process, unless it is told to take its time.
CHECK_SECONDS = 5.0


@dataclass
class Budget:
    """Seconds that are left for checks, and how long the longest took."""

    left: float
    longest: float = 0.0


class Findings:
    """Kept in files for each kind of GPU, version of this package and compiler, and what was checked for each
    card, driver and build as well, since each may break a kernel. May be used from several threads.

    gpu: its name as PyTorch gives it; None keeps everything in this process alone. driver: its version. card:
    what tells the GPU from others of its kind.
    """

    def __init__(self, gpu: str | None, driver: str = "", card: str = "") -> None:
        self.gpu = "the emulator" if gpu is None else gpu
        self.tiles = TileTables(gpu)
        self._of, self._driver, self._card = gpu, driver, card
        self.budget = Budget(CHECK_SECONDS)
        self._lock = threading.Lock()
        self._times: dict[type[Launch], Kept] = {}
        self._errors: dict[type[Launch], Kept] = {}
        # What could not even be launched, in this process.
        self.refused: dict[str, str] = {}
        self._said: set[str] = set()

    def times(self, launches: type[Launch]) -> Kept:
        """Milliseconds of blocks and networks, by their key."""
        return self._table(self._times, launches, f"{launches.compiler}-times", "measured times")

    def errors(self, launches: type[Launch]) -> Kept:
        """Relative errors of blocks and networks that were checked, by their key."""
        made_by = "-".join(
            filter(None, (launches.compiler, launches.build, "driver", self._driver, self._card))
        )
        return self._table(self._errors, launches, f"{made_by}-checked", "results of checks")

    def warn(self, message: str) -> None:
        """Say something to the log, once in this process."""
        if message not in self._said:
            self._said.add(message)
            _log.warning("%s", message)

    def _table(
        self, tables: dict[type[Launch], Kept], launches: type[Launch], made_by: str, what: str
    ) -> Kept:
        with self._lock:
            if launches not in tables:
                tables[launches] = Kept(None if self._of is None else file_of(self._of, made_by), what)
            return tables[launches]


_findings: dict[tuple[str, str] | None, Findings] = {}


def findings_of(device: torch.device) -> Findings:
    """Those of the GPU ``device``; on the CPU, where kernels are only tested, nothing is kept on disk."""
    which = None
    if device.type == "cuda":
        card = str(getattr(torch.cuda.get_device_properties(device), "uuid", ""))
        which = (torch.cuda.get_device_name(device), card)
    if which not in _findings:
        _findings[which] = Findings(None) if which is None else Findings(which[0], driver_version(), which[1])
    return _findings[which]


def driver_version() -> str:
    """Of NVIDIA's driver, such as "580.65.06"; where it is not told, the newest CUDA that it knows."""
    with suppress(OSError):
        found = re.search(r"Module\s.*?(\d+\.\d+[.\d]*)", _DRIVER.read_text(encoding="utf-8"))
        if found:
            return found[1]
    return f"cuda-{getattr(torch._C, '_cuda_getDriverVersion', int)()}"
