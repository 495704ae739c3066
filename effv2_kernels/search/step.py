"""One step of a search: what was considered, what was taken, and why; as JSON, and as text for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from effv2_kernels.families.efficientformer_v2 import Architecture, sizes
from effv2_kernels.tables import text_table


@dataclass(frozen=True)
class Candidate:
    """A subnet, and what is known of it. accuracy: from 0 to 1. metrics: see ``Costs``. mes: its score."""

    architecture: Architecture
    accuracy: float
    metrics: Mapping[str, float]
    mes: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"architecture": sizes(self.architecture)}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Candidate:
        architecture = Architecture.from_json(json.dumps(found["architecture"]))
        return cls(architecture, found["accuracy"], dict(found["metrics"]), found["mes"])


@dataclass(frozen=True)
class Option:
    """What a step could do. text: for people, such as "stage 3: width 96 -> 64".

    Of slimming alone: drop, of the accuracy; gain, in MES; score, the drop that counts / gain, where there is
    a gain.
    """

    text: str
    candidate: Candidate
    drop: float | None = None
    gain: float | None = None
    score: float | None = None

    def to_json(self) -> dict[str, Any]:
        return {"text": self.text, **self.candidate.to_json()} | {
            "drop": self.drop,
            "gain": self.gain,
            "score": self.score,
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Option:
        candidate = Candidate.from_json(found)
        return cls(found["text"], candidate, found["drop"], found["gain"], found["score"])


@dataclass(frozen=True)
class Step:
    """chosen: where the search stands after it. taken: the option that led there, None where none did."""

    number: int
    chosen: Candidate
    options: tuple[Option, ...]
    taken: int | None
    why: str

    def to_json(self) -> dict[str, Any]:
        return {
            "step": self.number,
            "chosen": self.chosen.to_json(),
            "options": [option.to_json() for option in self.options],
            "taken": self.taken,
            "why": self.why,
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Step:
        options = tuple(Option.from_json(option) for option in found["options"])
        chosen = Candidate.from_json(found["chosen"])
        return cls(found["step"], chosen, options, found["taken"], found["why"])


def explain(step: Step) -> str:
    """The options of a step with all that was known of them, the taken one marked, and why it was taken."""
    slimming = any(option.drop is not None for option in step.options)
    names = list(step.chosen.metrics)
    header = ["", "option", "accuracy", *names, "MES", *(("drop", "gain", "score") if slimming else ())]
    rows = [_row(option, i == step.taken, names, slimming) for i, option in enumerate(step.options)]
    table = f"{text_table(header, rows, left=2)}\n" if rows else ""
    return f"step {step.number}\n{table}{step.why}\n"


def _row(option: Option, taken: bool, names: Sequence[str], slimming: bool) -> list[str]:
    one = option.candidate
    row = [">" if taken else "", option.text, f"{one.accuracy:.2%}"]
    row += [f"{one.metrics[name]:.4g}" for name in names]
    row.append(f"{one.mes:.4g}")
    if slimming:
        formats = ((option.drop, "+.2%"), (option.gain, "+.4g"), (option.score, ".3g"))
        row += ["-" if value is None else format(value, how) for value, how in formats]
    return row
