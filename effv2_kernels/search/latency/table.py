"""How long networks of a search space take on one device: the times of blocks, and what they add up to.

The time of a network is modelled as the sum over its blocks, each by its kind, sizes and map, plus a time for
a call and one for each step from a block to the next. A table is made of readings of whole networks whose
blocks were timed one by one as they ran (``measuring``, or ``effv2-run --profile`` on another machine): a
block's time is its median over the networks that it was seen in, so that it is one among neighbours, with
their data in the caches, and not one that repeats itself.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from effv2_kernels.errors import LatencyError
from effv2_kernels.families.efficientformer_v2.architecture import Architecture
from effv2_kernels.families.efficientformer_v2.shapes import network_shapes
from effv2_kernels.replacing import replacing

_FORMAT = 1


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
class Reading:
    """One run of a network: times in the unit of its device.

    blocks: of each block, in order. whole: of the network as it is called, timed by itself. reference: of a
    network that is the same in all readings, timed beside this one; None where the device does not drift.
    """

    architecture: Architecture
    blocks: tuple[float, ...]
    whole: float
    reference: float | None = None


@dataclass(frozen=True)
class BlockTime:
    """time: the median over networks. spread: standard error of that, relative. networks: how many."""

    time: float
    spread: float
    networks: int


@dataclass(frozen=True)
class LatencyTable:
    """Times of blocks on a device. blocks: by ``str`` of their ``BlockShape``.

    call: of a call, beside all blocks. step: from one block to the next. img_size: (rows, columns) of images.
    reference: the network that was timed beside all others, and its time; None where nothing was beside them.
    """

    device: Device
    img_size: tuple[int, int]
    classes: int
    blocks: Mapping[str, BlockTime]
    call: float
    step: float
    reference: tuple[Architecture, float] | None = None

    def predict(self, architecture: Architecture) -> float:
        """The time of a network. Raises LatencyError where it has blocks that the table has not."""
        names = block_names(architecture, self.img_size, self.classes)
        missing = sorted({name for name in names if name not in self.blocks})
        if missing:
            raise LatencyError(
                f"the latency table has no time for {len(missing)} of the network's blocks: "
                f"{', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}. Measure a table of a search "
                f"space that has this network."
            )
        return self.call + sum(self.blocks[name].time + self.step for name in names)

    def require_images(
        self, img_size: tuple[int, int], classes: int, *, what: str = "the latency table"
    ) -> None:
        """Raise LatencyError where the table is of networks for other images or classes."""
        if (self.img_size, self.classes) != (img_size, classes):
            mine, others = ("x".join(map(str, size)) for size in (self.img_size, img_size))
            raise LatencyError(
                f"{what} is of {mine} images and {self.classes} classes, and what is asked for of {others} "
                f"and {classes}: measure one of this space, with --classes {classes}."
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
            "img_size": list(self.img_size),
            "classes": self.classes,
            "call": self.call,
            "step": self.step,
            "reference": None
            if self.reference is None
            else {"architecture": json.loads(self.reference[0].to_json()), "time": self.reference[1]},
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
            blocks = {str(name): BlockTime(**block) for name, block in found["blocks"].items()}
            rows, columns = found["img_size"]
            beside = found["reference"]
            reference = None
            if beside is not None:
                architecture = Architecture.from_json(json.dumps(beside["architecture"]))
                reference = architecture, float(beside["time"])
            return cls(
                Device(**found["device"]),
                (int(rows), int(columns)),
                int(found["classes"]),
                blocks,
                float(found["call"]),
                float(found["step"]),
                reference,
            )
        except OSError as error:
            raise LatencyError(f"the latency table {path} cannot be read: {error.strerror}.") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise LatencyError(
                f"{path} is no latency table ({type(error).__name__}: {error}). Write one with "
                f"'python -m effv2_kernels latency --out {path}'."
            ) from error


@lru_cache(maxsize=4096)
def block_names(architecture: Architecture, img_size: tuple[int, int], classes: int) -> tuple[str, ...]:
    """Of a network's blocks, in order: the same for blocks that take the same time."""
    return tuple(str(shape) for shape in network_shapes(architecture, img_size, classes=classes))


def table_of(
    readings: Sequence[Reading],
    device: Device,
    img_size: tuple[int, int],
    classes: int,
    reference: Architecture | None = None,
) -> LatencyTable:
    """The table that readings add up to. Times drift: each counts by that of the reference beside it."""
    references = [r.reference for r in readings if r.reference is not None]
    nominal = median(references) if references else 1.0
    seen: dict[str, dict[Architecture, list[float]]] = defaultdict(lambda: defaultdict(list))
    wholes: dict[Architecture, list[float]] = defaultdict(list)
    for reading in readings:
        scale = 1.0 if reading.reference is None else nominal / reading.reference
        wholes[reading.architecture].append(scale * reading.whole)
        own: dict[str, list[float]] = defaultdict(list)
        names = block_names(reading.architecture, img_size, classes)
        for name, time in zip(names, reading.blocks, strict=True):
            own[name].append(scale * time)
        for name, times in own.items():
            seen[name][reading.architecture].append(sum(times) / len(times))
    blocks = {name: _block_time([median(times) for times in of.values()]) for name, of in seen.items()}
    call, step = _rest(wholes, blocks, img_size, classes)
    beside = None if reference is None else (reference, nominal)
    return LatencyTable(device, img_size, classes, blocks, call, step, beside)


def _block_time(times: Sequence[float]) -> BlockTime:
    middle = median(times)
    # Of normal errors, that is two thirds of their standard deviation, and a median's error 1.25 of a mean's.
    deviation = 1.4826 * median(abs(time - middle) for time in times)
    spread = 1.25 * deviation / len(times) ** 0.5 / middle if middle > 0 else 0.0
    return BlockTime(middle, spread, len(times))


def _rest(
    wholes: Mapping[Architecture, Sequence[float]],
    blocks: Mapping[str, BlockTime],
    img_size: tuple[int, int],
    classes: int,
) -> tuple[float, float]:
    """What whole networks take beside their blocks, for a call and for each block, by least squares."""
    counts, left, weights = [], [], []
    for architecture, times in wholes.items():
        names = block_names(architecture, img_size, classes)
        whole = median(times)
        counts.append(len(names))
        left.append(whole - sum(blocks[name].time for name in names))
        weights.append(1 / whole)  # errors are relative ones
    w = np.array(weights)
    if len(set(counts)) < 2:
        return float((w * w * left).sum() / (w * w).sum()), 0.0
    factors = np.stack([w, w * counts], 1)
    call, step = np.linalg.lstsq(factors, w * left, rcond=None)[0]
    return float(call), float(step)


def write_json(path: Path, content: Any) -> None:
    """Replace a file at once, so that nobody finds half of one."""
    try:
        with replacing(path) as part:
            part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise LatencyError(f"{path} cannot be written: {error.strerror}.") from error
