"""The sizes of EfficientFormerV2: any, and those that were published."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from effv2_kernels import fields
from effv2_kernels.errors import ModelError

FILE = "architecture.json"  # what such files are called
# More is no network but a slip, which would end in want of memory or in an overflow.
MOST_WIDTH, MOST_DEPTH, MOST_HIDDEN = 2**16, 2**10, 2**20
_FIELDS = ("widths", "depths", "ratios", "attention_blocks")


@dataclass(frozen=True)
class Architecture:
    """The size of a network: four stages.

    ``ratios``: hidden channels of each FFN over its width; one number for all, one for each stage, or
    one for each block of each stage. ``attention_blocks``: how many of the last blocks of stages 3 and 4
    begin with attention; one number for both or a pair. Equal sizes are only equal in the same form: compare
    what ``canonical`` returns.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    ratios: float | tuple[float | tuple[float, ...], ...] = 4.0
    attention_blocks: int | tuple[int, int] = 0

    def __post_init__(self) -> None:
        if len(self.widths) != 4 or len(self.depths) != 4:
            raise ModelError(
                f"an architecture has 4 stages, but widths={self.widths} and depths={self.depths} "
                f"describe {len(self.widths)} and {len(self.depths)}."
            )
        if min(self.widths) < 2 or min(self.depths) < 0 or self.widths[0] % 2:
            raise ModelError(
                f"widths must be positive, the first one even, and depths not negative; "
                f"got widths={self.widths}, depths={self.depths}."
            )
        if max(self.widths) > MOST_WIDTH or max(self.depths) > MOST_DEPTH:
            raise ModelError(
                f"a stage has at most {MOST_WIDTH} channels and {MOST_DEPTH} blocks; "
                f"got widths={self.widths}, depths={self.depths}: give smaller ones."
            )
        for late, count in enumerate(self.late_attention()):
            if not 0 <= count <= self.depths[2 + late]:
                raise ModelError(
                    f"stage {3 + late} has {self.depths[2 + late]} blocks, so that many at most can have "
                    f"attention; got attention_blocks={self.attention_blocks}."
                )
        for stage, ratios in enumerate(self.block_ratios()):
            if len(ratios) != self.depths[stage] or not all(
                1 <= self.widths[stage] * r <= MOST_HIDDEN for r in ratios
            ):
                raise ModelError(
                    f"stage {stage + 1} needs {self.depths[stage]} expansion ratios that leave at least one "
                    f"hidden channel, and at most {MOST_HIDDEN}; got {ratios}."
                )

    def late_attention(self) -> tuple[int, int]:
        """The number of attention blocks of stage 3 and of stage 4."""
        if isinstance(self.attention_blocks, int):
            return min(self.attention_blocks, self.depths[2]), min(self.attention_blocks, self.depths[3])
        return self.attention_blocks[0], self.attention_blocks[1]

    def block_ratios(self) -> tuple[tuple[float, ...], ...]:
        """The expansion ratio of every block, by stage."""
        stages = self.ratios if isinstance(self.ratios, Sequence) else (self.ratios,) * 4
        if len(stages) != 4:
            raise ModelError(
                f"ratios must be one number or one entry for each of 4 stages; got {self.ratios}."
            )
        return tuple(
            tuple(r) if isinstance(r, Sequence) else (r,) * depth
            for r, depth in zip(stages, self.depths, strict=True)
        )

    def canonical(self) -> Architecture:
        """The same sizes in the one form where each block has its ratio and both late stages their attention.

        Of two architectures, these are equal, and hash alike, where the sizes are the same.
        """
        ratios = tuple(tuple(map(float, stage)) for stage in self.block_ratios())
        return Architecture(tuple(self.widths), tuple(self.depths), ratios, self.late_attention())

    def to_json(self) -> str:
        """The canonical form as a JSON object of one line for each field, as in ``architecture.json``."""
        values = {
            "widths": self.widths,
            "depths": self.depths,
            "ratios": [[fields.short(ratio) for ratio in stage] for stage in self.block_ratios()],
            "attention_blocks": self.late_attention(),
        }
        return "{\n" + ",\n".join(f'  "{k}": {json.dumps(v)}' for k, v in values.items()) + "\n}\n"

    @classmethod
    def from_json(cls, text: str, what: str = "the architecture") -> Architecture:
        """What ``to_json`` wrote, in canonical form; ``what`` is what messages call it.

        Ratios and attention blocks may also be written as the class takes them: one number for all, or for
        each stage. Raises ModelError, naming the field, where the text is no architecture.
        """
        data = fields.parse(text, what)
        fields.check_names(data, what, _FIELDS)
        attention = data["attention_blocks"]
        of = f"attention_blocks of {what}"
        try:
            return cls(
                fields.integers(data["widths"], f"widths of {what}", 4),
                fields.integers(data["depths"], f"depths of {what}", 4),
                _ratios(data["ratios"], f"ratios of {what}"),
                attention if type(attention) is int else _pair(fields.integers(attention, of, 2)),
            ).canonical()
        except ModelError as error:
            raise error if what in str(error) else ModelError(f"{what}: {error}") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write ``to_json``. Raises ModelError where the file cannot be written."""
        try:
            Path(path).write_text(self.to_json(), encoding="utf-8")
        except OSError as error:
            raise ModelError(f"cannot write '{os.fspath(path)}': {error.strerror or error}.") from error

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Architecture:
        """That of a file that ``save`` wrote, in canonical form. Raises ModelError where it holds none."""
        return cls.from_json(fields.read_text(path, "architecture"), f"architecture '{os.fspath(path)}'")

    def drop_path_rates(self, last: float) -> tuple[tuple[float, ...], ...]:
        """The drop-path rate of every block, by stage: from 0, linear over all blocks, to ``last``.

        As in the official ``eformer_block`` and in timm's ``calculate_drop_path_rates``.
        """
        steps = max(1, sum(self.depths) - 1)
        first = [sum(self.depths[:stage]) for stage in range(4)]
        return tuple(
            tuple(last * (begin + i) / steps for i in range(depth))
            for begin, depth in zip(first, self.depths, strict=True)
        )


def _ratios(value: Any, what: str) -> float | tuple[float | tuple[float, ...], ...]:
    if not isinstance(value, list):
        return fields.number(value, what)
    return tuple(
        fields.numbers(stage, what) if isinstance(stage, list) else fields.number(stage, what)
        for stage in fields.items(value, what, 4)
    )


def _pair(values: tuple[int, ...]) -> tuple[int, int]:
    return values[0], values[1]


VARIANTS: dict[str, Architecture] = {
    "efficientformerv2_s0": Architecture(
        (32, 48, 96, 176), (2, 2, 6, 4), (4, 4, (4, 3, 3, 3, 4, 4), (4, 3, 3, 4)), 2
    ),
    "efficientformerv2_s1": Architecture(
        (32, 48, 120, 224), (3, 3, 9, 6), (4, 4, (4, 4, 3, 3, 3, 3, 4, 4, 4), (4, 4, 3, 3, 4, 4)), 2
    ),
    "efficientformerv2_s2": Architecture(
        (32, 64, 144, 288),
        (4, 4, 12, 8),
        (4, 4, (4, 4, *(3,) * 6, 4, 4, 4, 4), (4, 4, 3, 3, 3, 3, 4, 4)),
        4,
    ),
    "efficientformerv2_l": Architecture(
        (40, 80, 192, 384),
        (5, 5, 15, 10),
        (4, 4, (4, 4, 4, 4, *(3,) * 7, 4, 4, 4, 4), (4, 4, 4, 3, 3, 3, 3, 4, 4, 4)),
        6,
    ),
}
