"""What a comparison found: plain data that JSON can hold, and the figures that are derived from it."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from effv2_kernels import replacing
from effv2_kernels.errors import InputError

PERCENTILES = (10, 50, 90, 99)


def percentile(values: Sequence[float], percent: float) -> float:
    """The value below which ``percent`` of 100 lie, with linear interpolation between neighbours."""
    ordered = sorted(values)
    position = (len(ordered) - 1) * percent / 100
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def median_ratio(slower: Sequence[float], faster: Sequence[float]) -> float:
    """The median over the rounds of slower[round] / faster[round]."""
    return statistics.median(a / b for a, b in zip(slower, faster, strict=True))


@dataclass(frozen=True)
class Entry:
    """One contestant. Where ``refused`` gives a reason, there are no figures at all."""

    name: str
    settings: str = ""  # version and options, for people
    error: float | None = None  # relative L2 of the output against float64
    refused: str | None = None
    ready_seconds: float | None = None  # from the model in memory to the first result
    rounds: tuple[float, ...] = ()  # seconds of one call: each turn's median
    percentiles: dict[str, float] = field(default_factory=dict)  # seconds of one call, over all calls
    calls: int = 0

    @classmethod
    def measured(cls, turns: Sequence[Sequence[float]], **known: Any) -> Entry:
        """turns: the seconds of the calls, round by round."""
        every = [duration for turn in turns for duration in turn]
        return cls(
            rounds=tuple(statistics.median(turn) for turn in turns),
            percentiles={f"p{p}": percentile(every, p) for p in PERCENTILES},
            calls=len(every),
            **known,
        )


@dataclass(frozen=True)
class Comparison:
    """Contestants on one model and one batch, timed in turns."""

    model: str
    batch: int
    image_size: tuple[int, int]
    threads: int
    isa: str | None  # of the contestant "effv2"
    cpu: str
    gflop: float  # of one image, 2 for each multiply-add
    entries: tuple[Entry, ...]
    peak: tuple[float, ...] = ()  # GFLOP/s of register-only multiply-adds, once per round
    versions: dict[str, str] = field(default_factory=dict)

    def entry(self, name: str) -> Entry:
        """Raises KeyError for a contestant that did not take part."""
        for entry in self.entries:
            if entry.name == name:
                return entry
        raise KeyError(name)

    def _rounds(self, name: str) -> tuple[float, ...]:
        return next((e.rounds for e in self.entries if e.name == name), ())

    def seconds_per_image(self, name: str) -> float | None:
        """The median over the rounds; None where there is no figure."""
        rounds = self._rounds(name)
        return statistics.median(rounds) / self.batch if rounds else None

    def range_per_image(self, name: str) -> tuple[float, float] | None:
        """Seconds: the 10th and the 90th percentile over the rounds; None where there is no figure."""
        rounds = self._rounds(name)
        if not rounds:
            return None
        return percentile(rounds, 10) / self.batch, percentile(rounds, 90) / self.batch

    def ratio(self, rival: str, ours: str = "effv2") -> float | None:
        """How many times faster ``ours`` is: the median of the rounds' ratios; None without a figure.

        ``rival``: a contestant, or several ways to run one rival such as "openvino" and
        "openvino_streams", joined by "+": then the one that leaves us the smallest ratio.
        """
        way = self.faster_way(rival, ours)
        return None if way is None else median_ratio(self._rounds(way), self._rounds(ours))

    def faster_way(self, rival: str, ours: str = "effv2") -> str | None:
        """Of the ways to run a rival, joined by "+", the one that ``ratio`` is about; None for no figure."""
        mine = self._rounds(ours)
        ways = [way for way in rival.split("+") if mine and self._rounds(way)]
        return min(ways, key=lambda way: median_ratio(self._rounds(way), mine), default=None)

    def gflops(self, name: str) -> float | None:
        """GFLOP/s."""
        seconds = self.seconds_per_image(name)
        return self.gflop / seconds if seconds else None

    def share_of_peak(self, name: str) -> float | None:
        """The median over the rounds of GFLOP/s over the peak of the same round."""
        rounds = self._rounds(name)
        if not rounds or not self.peak:
            return None
        work = self.gflop * self.batch
        return statistics.median(work / s / p for s, p in zip(rounds, self.peak, strict=True))

    def to_json(self) -> dict[str, Any]:
        """Everything measured, and beside it the figures that tables show, for those who read the file."""
        data = asdict(self)
        for entry in data["entries"]:
            name = entry["name"]
            seconds = self.seconds_per_image(name)
            entry["derived"] = {
                "ms_per_image": None if seconds is None else seconds * 1e3,
                "gflops": self.gflops(name),
                "share_of_peak": self.share_of_peak(name),
                "effv2_is_faster_by": self.ratio(name),
            }
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Comparison:
        """The inverse of ``to_json``."""
        entries = []
        for entry in data["entries"]:
            kept = {k: v for k, v in entry.items() if k != "derived"}
            entries.append(Entry(**kept | {"rounds": tuple(kept["rounds"])}))
        rows, columns = data["image_size"]
        changed = {"entries": tuple(entries), "peak": tuple(data["peak"]), "image_size": (rows, columns)}
        return cls(**data | changed)


def pooled(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Runs of one model and batch on one machine as one, in the order in which they come first.

    An entry that has no figures in one of the runs has none.
    """
    runs: dict[tuple[Any, ...], list[Comparison]] = {}
    for c in comparisons:
        runs.setdefault((c.cpu, c.isa, c.model, c.batch, c.image_size, c.threads), []).append(c)
    return [_pooled(same) if len(same) > 1 else same[0] for same in runs.values()]


def _pooled(runs: Sequence[Comparison]) -> Comparison:
    entries = []
    for first in runs[0].entries:
        same = [e for c in runs for e in c.entries if e.name == first.name]
        refused = [e for e in same if not e.rounds]
        if refused or len(same) < len(runs):
            reason = refused[0].refused if refused else "did not take part in every run"
            entries.append(Entry(first.name, first.settings, refused=reason))
            continue
        entries.append(
            Entry(
                first.name,
                first.settings,
                error=max((e.error for e in same if e.error is not None), default=None),
                ready_seconds=first.ready_seconds,
                rounds=tuple(seconds for e in same for seconds in e.rounds),
                calls=sum(e.calls for e in same),
            )
        )
    peak = tuple(p for c in runs for p in c.peak)
    return replace(runs[0], entries=tuple(entries), peak=peak)


def write(path: str | Path, comparisons: Sequence[Comparison], **more: Any) -> None:
    """A JSON file {"comparisons": [...], **more}. Raises InputError where it cannot be written."""
    data = {"comparisons": [c.to_json() for c in comparisons], **more}
    with _writing(path):
        Path(path).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def check_writable(path: str | Path) -> None:
    """Raise as ``write`` where a file cannot be written, before anything is measured."""
    with _writing(path):
        replacing.require_writable(Path(path))


@contextmanager
def _writing(path: str | Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"'{path}' cannot be written: {error.strerror or error}. Give a file in a folder that is "
            f"there and can be written."
        ) from error


def read(path: str | Path) -> list[Comparison]:
    """The comparisons of a file that ``write`` wrote."""
    data = json.loads(Path(path).read_text(encoding="utf-8"))
    return [Comparison.from_json(entry) for entry in data["comparisons"]]
