"""The steps from one subnet to the next ones.

Blocks without attention come first in a stage, so that "one block less" takes the last of these, and "one
more" puts one behind them, with the ratio of the block before it (the largest one where there is none).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from effv2_kernels import fields
from effv2_kernels.families.efficientformer_v2.architecture import Architecture
from effv2_kernels.search.space.choices import StageChoices

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Action:
    """One step, and where it leads.

    kind: "depth", "attention", "width" or "ratio". stage: 1 to 4. block: of a ratio, counted from 1 within
    the subnet's stage. text: for people, such as "stage 3, block 2: ratio 4 -> 3".
    """

    kind: str
    stage: int
    block: int | None
    text: str
    architecture: Architecture

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class _Stage:
    """One stage of a subnet."""

    width: int
    ratios: tuple[float, ...]
    attention: int

    @property
    def plain(self) -> int:
        """How many blocks are without attention."""
        return len(self.ratios) - self.attention

    def with_depth(self, depth: int, otherwise: float) -> _Stage:
        """More or fewer blocks without attention."""
        plain, attending = self.ratios[: self.plain], self.ratios[self.plain :]
        more = (plain[-1] if plain else otherwise,) * (depth - len(self.ratios))
        kept = plain[: depth - self.attention]
        return _Stage(self.width, (*kept, *more, *attending), self.attention)


# kind, block, what changes, and the stage afterwards
_Move = tuple[str, int | None, str, _Stage]


def smaller(stages: Sequence[StageChoices], architecture: Architecture) -> list[Action]:
    """Every subnet that is one step smaller."""
    return list(_actions(stages, architecture, -1))


def larger(stages: Sequence[StageChoices], architecture: Architecture) -> list[Action]:
    """Every subnet that is one step larger."""
    return list(_actions(stages, architecture, 1))


def _actions(stages: Sequence[StageChoices], architecture: Architecture, step: int) -> Iterator[Action]:
    attention = (0, 0, *architecture.late_attention())
    now = [
        _Stage(width, ratios, count)
        for width, ratios, count in zip(
            architecture.widths, architecture.block_ratios(), attention, strict=True
        )
    ]
    for i, choices in enumerate(stages):
        for kind, block, change, stage in _moves(choices, now[i], step):
            where = f"stage {i + 1}" if block is None else f"stage {i + 1}, block {block}"
            after = [*now[:i], stage, *now[i + 1 :]]
            yield Action(kind, i + 1, block, f"{where}: {change}", _architecture(after))


def _moves(choices: StageChoices, now: _Stage, step: int) -> Iterator[_Move]:
    depth = _next(choices.depths, len(now.ratios), step)
    if depth is not None and depth >= now.attention:
        change = f"{len(now.ratios)} -> {depth} blocks"
        yield "depth", None, change, now.with_depth(depth, choices.ratios[-1])
    count = _next(choices.attention_blocks, now.attention, step)
    if count is not None and count <= len(now.ratios):
        change = f"{now.attention} -> {count} blocks with attention"
        yield "attention", None, change, _Stage(now.width, now.ratios, count)
    width = _next(choices.widths, now.width, step)
    if width is not None:
        change = f"width {now.width} -> {width}"
        yield "width", None, change, _Stage(width, now.ratios, now.attention)
    for i, ratio in enumerate(now.ratios):
        other = _next(choices.ratios, ratio, step)
        if other is not None:
            change = f"ratio {fields.short(ratio)} -> {fields.short(other)}"
            ratios = (*now.ratios[:i], other, *now.ratios[i + 1 :])
            yield "ratio", i + 1, change, _Stage(now.width, ratios, now.attention)


def _next(choices: Sequence[Number], value: Number, step: int) -> Number | None:
    """What stands beside a value, None at the end."""
    index = choices.index(value) + step
    return choices[index] if 0 <= index < len(choices) else None


def _architecture(stages: Sequence[_Stage]) -> Architecture:
    return Architecture(
        tuple(stage.width for stage in stages),
        tuple(len(stage.ratios) for stage in stages),
        tuple(stage.ratios for stage in stages),
        (stages[2].attention, stages[3].attention),
    ).canonical()
