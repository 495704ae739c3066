"""Which tile each launch takes: measured on this GPU, shipped for its kind, or the first that fits.

Measured choices are kept in one JSON file for each kind of GPU, version of this package and version of the
kernels' compiler, in the folder EFFV2_CACHE_DIR or ``~/.cache/effv2_kernels``. The shipped ones are files of
the same kind beside the kernels, made by measuring as well. A file that cannot be read or written is left
alone with a warning: it only makes things slower.
"""

from __future__ import annotations

import json
import logging
import os
import re
import tempfile
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import effv2_kernels
from effv2_kernels.engine import Progress
from effv2_kernels.errors import UnavailableError
from effv2_kernels.gpu.launch import Launch, Tile
from effv2_kernels.gpu.resources import Resources
from effv2_kernels.gpu.timing import milliseconds

_log = logging.getLogger(__name__)

# GPUs with the chip of another one, for which tiles are shipped: their memory is another or their clock.
_SAME_CHIP = {
    "nvidia-h200": "nvidia-h100-80gb-hbm3",
    "nvidia-h100-pcie": "nvidia-h100-80gb-hbm3",
    "nvidia-h100-nvl": "nvidia-h100-80gb-hbm3",
}


class TileTable:
    """A backend's tiles that were measured on one kind of GPU; may be used from several threads.

    gpu: its name as PyTorch gives it. launches: the backend's class of them.
    """

    def __init__(self, gpu: str, launches: type[Launch]) -> None:
        kind = re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")
        self.path = _folder() / f"{kind}-{effv2_kernels.__version__}-{launches.compiler}.json"
        self._lock = threading.Lock()
        shipped = launches.shipped
        self._tiles = {**_read(shipped / f"{kind}.json"), **_read(self.path)}
        self._same_chip = _read(shipped / f"{_SAME_CHIP[kind]}.json") if kind in _SAME_CHIP else {}

    def find(self, launch: Launch) -> Tile | None:
        """The tile measured for a launch, None if there is none or it is no candidate any more."""
        return self.measured(launch) or _candidate(launch, self._same_chip)

    def measured(self, launch: Launch) -> Tile | None:
        """As ``find``, but on a GPU of this very kind."""
        return _candidate(launch, self._tiles)

    def add(self, chosen: dict[str, Tile]) -> None:
        """Remember the tiles of launches, by their key, here and on disk."""
        with self._lock:
            self._tiles |= {key: str(tile) for key, tile in chosen.items()}
            # Another process may have measured as well since this one began.
            merged = {**_read(self.path), **{key: self._tiles[key] for key in chosen}}
            try:
                _write(self.path, merged)
            except OSError as error:
                _log.warning(
                    "the measured tiles cannot be kept in %s (%s); they are used in this process only. Name "
                    "another folder with EFFV2_CACHE_DIR.",
                    self.path,
                    error,
                )


def _candidate(launch: Launch, tiles: dict[str, str]) -> Tile | None:
    named = tiles.get(launch.key)
    return next((tile for tile in launch.tiles if str(tile) == named), None)


class TileTables:
    """The tables of one kind of GPU, one for each backend; may be used from several threads."""

    def __init__(self, gpu: str) -> None:
        self._gpu = gpu
        self._lock = threading.Lock()
        self._tables: dict[type[Launch], TileTable] = {}

    def of(self, launches: type[Launch]) -> TileTable:
        """The table of a backend's class of launches, read at the first use."""
        with self._lock:
            if launches not in self._tables:
                self._tables[launches] = TileTable(self._gpu, launches)
            return self._tables[launches]

    def find(self, launch: Launch) -> Tile | None:
        """See ``TileTable``."""
        return self.of(type(launch)).find(launch)

    def measured(self, launch: Launch) -> Tile | None:
        """See ``TileTable``."""
        return self.of(type(launch)).measured(launch)

    def add(self, chosen: Mapping[Launch, Tile]) -> None:
        """Remember the tiles of launches, here and on disk."""
        for launches, found in _by_class(chosen.items()).items():
            self.of(launches).add({launch.key: tile for launch, tile in found})


_tables: dict[str, TileTables] = {}


def tables_of(device: torch.device) -> TileTables:
    """The tables of the GPU ``device``."""
    gpu = torch.cuda.get_device_name(device)
    if gpu not in _tables:
        _tables[gpu] = TileTables(gpu)
    return _tables[gpu]


def compile_missing(pairs: Iterable[tuple[Launch, Tile]]) -> None:
    """Compile what is not compiled yet of launches with their tiles, for the current GPU."""
    for launches, found in _by_class(pairs).items():
        launches.compile_missing(found)


def _by_class(pairs: Iterable[tuple[Launch, Tile]]) -> dict[type[Launch], list[tuple[Launch, Tile]]]:
    found: dict[type[Launch], list[tuple[Launch, Tile]]] = {}
    for launch, tile in pairs:
        found.setdefault(type(launch), []).append((launch, tile))
    return found


def choose(launches: Sequence[Launch], tables: TileTables) -> list[tuple[Tile, Resources]]:
    """The tiles to use for launches on the current GPU, compiled. Raises UnavailableError where none fits."""
    measured = [tables.find(launch) for launch in launches]
    compile_missing(
        [(launch, tile or launch.tiles[0]) for launch, tile in zip(launches, measured, strict=True)]
    )
    chosen = []
    for launch, tile in zip(launches, measured, strict=True):
        made = None if tile is None else launch.compile(tile)
        chosen.append(best_unmeasured(launch) if tile is None or made is None else (tile, made))
    return chosen


def best_unmeasured(launch: Launch) -> tuple[Tile, Resources]:
    """The first of a launch's tiles that fits the current GPU without spilling, or spills least.

    Raises UnavailableError where none can be launched at all.
    """
    fitting = []
    for tile in launch.tiles:
        made = launch.compile(tile)
        if made is not None and made.stack == 0:
            return tile, made
        if made is not None:
            fitting.append((tile, made))
    if not fitting:
        raise UnavailableError(
            f"none of the {len(launch.tiles)} tiles of {launch.name} fits into the shared memory of this GPU "
            f"({torch.cuda.get_device_name()}). Use another GPU, or another precision with "
            f"optimize(model, dtype=...)."
        )
    return min(fitting, key=lambda found: found[1].stack)


def measure(
    launches: Sequence[Launch], tables: TileTables, progress: Progress
) -> dict[str, dict[str, float]]:
    """Time every tile of every launch that the tables do not know, and remember the fastest ones.

    Returns the milliseconds of each tile, by the key of its launch.

    Raises UnavailableError where memory does not suffice; what was measured before is kept.
    """
    open_launches = {launch.key: launch for launch in launches if tables.measured(launch) is None}
    chosen: dict[Launch, Tile] = {}
    found: dict[str, dict[str, float]] = {}
    progress("compiling", 0.0)
    compile_missing([(launch, tile) for launch in open_launches.values() for tile in launch.tiles])
    try:
        for done, (key, launch) in enumerate(open_launches.items()):
            progress(launch.name, done / len(open_launches))
            times = {}
            for tile in launch.tiles:
                if launch.compile(tile) is not None:
                    times[tile] = milliseconds(launch, tile)
            if times:
                chosen[launch] = min(times, key=lambda tile: times[tile])
                found[key] = {str(tile): ms for tile, ms in times.items()}
        progress("done", 1.0)
    finally:
        tables.add(chosen)
    return found


def _folder() -> Path:
    named = os.environ.get("EFFV2_CACHE_DIR")
    if named:
        return Path(named)
    try:
        return Path.home() / ".cache" / "effv2_kernels"
    except RuntimeError:  # a user without a home
        return Path(tempfile.gettempdir()) / "effv2_kernels"


def _read(path: Path) -> dict[str, str]:
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        _log.warning("the measured tiles in %s cannot be read (%s) and are ignored.", path, error)
        return {}
    if not isinstance(data, dict) or not all(isinstance(value, str) for value in data.values()):
        _log.warning("%s does not hold measured tiles and is ignored.", path)
        return {}
    return data


def _write(path: Path, tiles: dict[str, str]) -> None:
    """Whole or not at all, whoever reads meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
        try:
            json.dump(tiles, file, indent=1, sort_keys=True)
            file.flush()
            os.chmod(file.name, 0o644)  # other users of the folder read it as well
            os.replace(file.name, path)
        except OSError:
            os.unlink(file.name)
            raise
