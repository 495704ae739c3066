"""How long networks of a search space take on one device: the times of blocks, and what they add up to.

The time of a network is modelled as the sum over its blocks, each by its kind, sizes and map, plus a time for
a call and one for each step from a block to the next. A table is made (``fit``) of readings of whole networks
whose blocks were timed one by one as they ran (``measuring``, or ``effv2-run --profile`` on another machine):
a block's time is its median over the networks that it was seen in, so that it is one among neighbours, with
their data in the caches, and not one that repeats itself.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from effv2_kernels.errors import LatencyError
from effv2_kernels.families.efficientformer_v2 import Architecture, sizes
from effv2_kernels.replacing import replacing
from effv2_kernels.search.latency.task import Task, block_names

_FORMAT = 1

# That a table may be off in the median, for the networks that it is made of and in a proof for others.
LARGEST_ERROR = 0.04

# What is raised where a file is read that holds something else.
DAMAGED = (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError, RecursionError)


@dataclass(frozen=True)
class Device:
    """What times depend on. unit: "ms", or "instructions" of an emulated processor.

    name: of the processor or GPU. runs: the ISA, or the backend of a GPU. threads: None where that has no
    meaning. versions: of what is timed, by package.
    """

    name: str
    runs: str
    dtype: str
    threads: int | None
    batch: int
    versions: Mapping[str, str]
    unit: str = "ms"

    def differences(self, other: Device) -> list[str]:
        """What is not the same, in words: nothing where times of one are times of the other."""
        mine, others = asdict(self), asdict(other)
        return [
            f"{name}: {mine[name]} here, {others[name]} there" for name in mine if mine[name] != others[name]
        ]


@dataclass(frozen=True)
class BlockTime:
    """time: the median over networks. spread: standard error of that, relative. networks: how many."""

    time: float
    spread: float
    networks: int


@dataclass(frozen=True)
class LatencyTable:
    """Times of blocks on a device. blocks: by ``str`` of their ``BlockShape``.

    call: of a call, beside all blocks. step: from one block to the next. reference: the network that was
    timed beside all others, and its time; None where nothing was beside them. error: how far it is off,
    relative and in the median, for the very networks that it was made of; where that is much, something
    disturbed them.
    """

    device: Device
    task: Task
    blocks: Mapping[str, BlockTime]
    call: float
    step: float
    reference: tuple[Architecture, float] | None = None
    error: float = 0.0

    def predict(self, architecture: Architecture) -> float:
        """The time of a network. Raises LatencyError where it has blocks that the table has not."""
        names = block_names(architecture, self.task)
        missing = sorted({name for name in names if name not in self.blocks})
        if missing:
            raise LatencyError(
                f"the latency table has no time for {len(missing)} of the network's blocks: "
                f"{', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}. Measure a table of a search "
                f"space that has this network."
            )
        return self.call + sum(self.blocks[name].time + self.step for name in names)

    def doubts(self) -> list[str]:
        """Why it cannot be relied on, as far as it tells by itself: in sentences."""
        if self.error <= LARGEST_ERROR:
            return []
        return [
            f"The table is {self.error:.1%} off for the very networks that it was made of: something "
            f"slowed them down."
        ]

    def require_task(self, task: Task, *, what: str = "the latency table") -> None:
        """Raise LatencyError where the table is of networks for other images or classes."""
        if self.task != task:
            raise LatencyError(
                f"{what} is of {self.task}, and what is asked for of {task}: measure one of this space, with "
                f"--classes {task.classes}."
            )

    def require(self, here: Device, *, what: str = "the latency table", force: bool = False) -> list[str]:
        """What of the table's device is not as it is here, in words; nothing where it is the same.

        what: what messages call the table. Raises LatencyError where anything is not, unless ``force`` takes
        the table nevertheless.
        """
        differences = here.differences(self.device)
        if differences and not force:
            raise LatencyError(
                f"{what} is of another device ({'; '.join(differences)}): measure one here. A search takes "
                f"it where --threads and the like say what it is for, or by --force."
            )
        return differences

    def save(self, path: str | os.PathLike[str]) -> None:
        """As JSON; a file that was there is replaced at once."""
        content = {
            "effv2_latency": _FORMAT,
            "device": asdict(self.device),
            **asdict(self.task),
            "call": self.call,
            "step": self.step,
            "error": self.error,
            "reference": None
            if self.reference is None
            else {"architecture": sizes(self.reference[0]), "time": self.reference[1]},
            "blocks": {name: asdict(block) for name, block in sorted(self.blocks.items())},
        }
        write_json(Path(path), content)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> LatencyTable:
        """Raises LatencyError where it is no latency table."""
        try:
            found = json.loads(Path(path).read_text(encoding="utf-8"))
            if found["effv2_latency"] != _FORMAT:
                raise LatencyError(
                    f"{path} is a latency table of format {found['effv2_latency']}, and this version reads "
                    f"format {_FORMAT}: measure it again."
                )
            blocks = {
                str(name): BlockTime(time_in(of["time"]), time_in(of["spread"]), int(of["networks"]))
                for name, of in found["blocks"].items()
            }
            rows, columns = found["img_size"]
            beside = found["reference"]
            reference = None
            if beside is not None:
                architecture = Architecture.from_json(json.dumps(beside["architecture"]))
                reference = architecture, time_in(beside["time"])
            return cls(
                Device(**found["device"]),
                Task((int(rows), int(columns)), int(found["in_channels"]), int(found["classes"])),
                blocks,
                time_in(found["call"]),
                time_in(found["step"]),
                reference,
                time_in(found["error"]),
            )
        except OSError as error:
            raise LatencyError(f"the latency table {path} cannot be read: {error.strerror}.") from error
        except DAMAGED as error:
            raise LatencyError(
                f"{path} is no latency table ({type(error).__name__}: {error}). Write one with "
                f"'python -m effv2_kernels latency --out {path}'."
            ) from error


def time_in(value: Any, *, of_network: bool = False) -> float:
    """What a file has where a time must be: NaN would be within any budget. Networks take more than 0.

    Raises TypeError for what is no number, ValueError for one that is no time.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"expected a number, got {value!r}")
    # Integers in a file may be larger than any float.
    if not 0 <= value <= sys.float_info.max or (of_network and value == 0):
        raise ValueError(f"expected a time{' above 0' if of_network else ''}, got {value}")
    return float(value)


def write_json(path: Path, content: Any) -> None:
    """Replace a file at once, so that nobody finds half of one."""
    try:
        with replacing(path) as part:
            part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise LatencyError(f"{path} cannot be written: {error.strerror}.") from error
