"""Which tile each launch takes: measured on this GPU, shipped for its kind, or the first that fits.

Measured choices are kept (``kept``) in one file for each kind of GPU, version of this package and version of
the kernels' compiler. The shipped ones are files of the same kind beside the kernels, made by measuring as
well.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

from effv2_kernels.engine import Progress
from effv2_kernels.errors import UnavailableError
from effv2_kernels.gpu.kept import Kept, file_of, kind_of, read
from effv2_kernels.gpu.launch import Launch, LaunchError, Tile
from effv2_kernels.gpu.resources import Resources
from effv2_kernels.gpu.timing import milliseconds

_log = logging.getLogger(__name__)

_WHAT = "measured tiles"

# GPUs with the chip of another one, for which tiles are shipped: their memory is another or their clock.
_SAME_CHIP = {
    "nvidia-h200": "nvidia-h100-80gb-hbm3",
    "nvidia-h100-pcie": "nvidia-h100-80gb-hbm3",
    "nvidia-h100-nvl": "nvidia-h100-80gb-hbm3",
}


class TileTable:
    """A backend's tiles that were measured on one kind of GPU; may be used from several threads.

    gpu: its name as PyTorch gives it; None keeps them in this process alone. launches: the backend's class of
    them.
    """

    def __init__(self, gpu: str | None, launches: type[Launch]) -> None:
        self._kept = Kept(None if gpu is None else file_of(gpu, launches.compiler), _WHAT)
        self._shipped = self._same_chip = dict[str, str]()
        if gpu is not None:
            kind = kind_of(gpu)
            self._shipped = read(launches.shipped / f"{kind}.json", _WHAT)
            if kind in _SAME_CHIP:
                self._same_chip = read(launches.shipped / f"{_SAME_CHIP[kind]}.json", _WHAT)

    @property
    def path(self) -> Path | None:
        """Of the file that what is measured goes to."""
        return self._kept.path

    def find(self, launch: Launch) -> Tile | None:
        """The tile measured for a launch, None if there is none or it is no candidate any more."""
        return self.measured(launch) or _candidate(launch, self._same_chip.get(launch.key))

    def measured(self, launch: Launch) -> Tile | None:
        """As ``find``, but on a GPU of this very kind."""
        return _candidate(launch, self._kept.get(launch.key) or self._shipped.get(launch.key))

    def add(self, chosen: Mapping[str, Tile]) -> None:
        """Remember the tiles of launches, by their key, here and on disk."""
        self._kept.add({key: str(tile) for key, tile in chosen.items()})


def _candidate(launch: Launch, named: str | None) -> Tile | None:
    return next((tile for tile in launch.tiles if str(tile) == named), None)


class TileTables:
    """The tables of one kind of GPU, one for each backend; may be used from several threads."""

    def __init__(self, gpu: str | None) -> None:
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


def compile_missing(pairs: Iterable[tuple[Launch, Tile]]) -> None:
    """Compile what is not compiled yet of launches with their tiles, for the current GPU."""
    for launches, found in _by_class(pairs).items():
        launches.compile_missing(found)


def _by_class(pairs: Iterable[tuple[Launch, Tile]]) -> dict[type[Launch], list[tuple[Launch, Tile]]]:
    found: dict[type[Launch], list[tuple[Launch, Tile]]] = {}
    for launch, tile in pairs:
        found.setdefault(type(launch), []).append((launch, tile))
    return found


def ready(launches: Sequence[Launch], tables: TileTables) -> list[tuple[Tile, Resources | None]]:
    """As ``choose``; those that are interpreted need not be compiled, and have no resources."""
    compiled = [launch for launch in launches if not launch.interpreted]
    chosen = dict(zip(compiled, choose(compiled, tables), strict=True))
    return [chosen.get(ln) or (tables.find(ln) or ln.tiles[0], None) for ln in launches]


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
        needs = [needed for tile in launch.tiles if (needed := launch.shared_bytes(tile)) is not None]
        least = f": the smallest needs {min(needs)} bytes of it" if needs else ""
        raise UnavailableError(
            f"none of the {len(launch.tiles)} tiles of {launch.name} fits into the shared memory of this GPU "
            f"({torch.cuda.get_device_name()}){least}. Use another GPU, or another precision with "
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
                try:
                    if launch.compile(tile) is not None:
                        times[tile] = milliseconds(launch, tile)
                except LaunchError as error:
                    if launch.trusted:
                        raise
                    _log.warning("%s (%s) was not measured: %s", launch.name, tile, error)
            if times:
                chosen[launch] = min(times, key=lambda tile: times[tile])
                found[key] = {str(tile): ms for tile, ms in times.items()}
        progress("done", 1.0)
    finally:
        tables.add(chosen)
    return found
