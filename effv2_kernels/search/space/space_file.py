"""Search spaces as small JSON files.

    {
      "img_size": [224, 224],
      "in_channels": 3,
      "stages": [
        {"widths": [32, 40], "depths": {"from": 2, "to": 5, "step": 1}, "ratios": [3, 4]},
        ...,
        {"widths": ..., "depths": ..., "ratios": ..., "attention_blocks": [0, 2, 4, 6]}
      ]
    }

A range ends with "to" where its steps meet it; its step is 1 where none is given.

Two come with the package. "efficientformerv2" holds the published S0, S1, S2 and L, and the steps between
them; what the paper's own space was is not public. "fashion" is for grey images of 28x28 or 32x32, padded
to 36x36, the least size at which the attention of stages 3 and 4 still sees 2x2 tokens. Its largest network
has 8.1 M multiply-adds and 1.2 M parameters, its smallest 0.8 M and 0.1 M, of 10^10.1. A step of the
sandwich rule on 128 images takes about a second of a server's core (fp32, channels_last; measured).
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from effv2_kernels import fields
from effv2_kernels.errors import ModelError
from effv2_kernels.search.space.choices import StageChoices

_FOLDER = Path(__file__).with_name("shipped")
_MOST_STEPS = 2**16  # more than any choice has, and few enough to list
_INTEGERS = ("widths", "depths", "attention_blocks")


def built_in() -> list[str]:
    """The names of the spaces that the package brings along."""
    return sorted(path.stem for path in _FOLDER.glob("*.json"))


def text_of(source: str | os.PathLike[str]) -> tuple[str, str]:
    """The text of a built-in space or of a file, and what messages call it. Raises ModelError."""
    if source in built_in():
        return fields.read_text(_FOLDER / f"{source}.json", "search space"), f"search space '{source}'"
    if not Path(source).exists():
        raise ModelError(
            f"search space '{os.fspath(source)}' is no file, and none of those that the package has: "
            f"{', '.join(built_in())}."
        )
    return fields.read_text(source, "search space"), f"search space '{os.fspath(source)}'"


def parse(text: str, what: str) -> tuple[list[StageChoices], tuple[int, int], int]:
    """The choices of four stages, img_size and in_channels. Raises ModelError, naming the field."""
    data = fields.parse(text, what)
    fields.check_names(data, what, ("stages",), ("img_size", "in_channels"))
    rows, columns = fields.integers(data.get("img_size", [224, 224]), f"img_size of {what}", 2)
    in_channels = fields.integer(data.get("in_channels", 3), f"in_channels of {what}")
    entries = fields.items(data["stages"], f"stages of {what}", 4)
    stages = [_stage(entry, f"stage {i + 1} of {what}") for i, entry in enumerate(entries)]
    return stages, (rows, columns), in_channels


def _stage(entry: Any, what: str) -> StageChoices:
    fields.check_names(entry, what, ("widths", "depths", "ratios"), ("attention_blocks",))
    chosen = {name: _integers(entry[name], f"{name} of {what}") for name in _INTEGERS if name in entry}
    return StageChoices(ratios=fields.numbers(entry["ratios"], f"ratios of {what}"), **chosen)


def _integers(value: Any, what: str) -> tuple[int, ...]:
    if not isinstance(value, dict):
        return fields.integers(value, what)
    fields.check_names(value, what, ("from", "to"), ("step",))
    first, last = (fields.integer(value[name], f"'{name}' of {what}") for name in ("from", "to"))
    step = fields.integer(value.get("step", 1), f"'step' of {what}")
    if step < 1 or last < first or (last - first) % step:
        raise ModelError(f"{what}: no steps of {step} lead from {first} to {last}.")
    if (last - first) // step >= _MOST_STEPS:
        raise ModelError(
            f"{what}: more than {_MOST_STEPS} steps lead from {first} to {last}: take larger ones."
        )
    return tuple(range(first, last + 1, step))


def describe(stages: Sequence[StageChoices], img_size: tuple[int, int], in_channels: int) -> str:
    """The text that ``parse`` reads."""
    lines = []
    for stage in stages:
        entry: dict[str, Any] = {
            "widths": stage.widths,
            "depths": stage.depths,
            "ratios": [fields.short(ratio) for ratio in stage.ratios],
        }
        if stage.attention_blocks != (0,):
            entry["attention_blocks"] = stage.attention_blocks
        lines.append(f"    {json.dumps(entry)}")
    listed = ",\n".join(lines)
    return (
        f'{{\n  "img_size": {json.dumps(img_size)},\n  "in_channels": {in_channels},\n'
        f'  "stages": [\n{listed}\n  ]\n}}\n'
    )
