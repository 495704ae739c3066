"""The sizes of EfficientFormerV2: any, and those that were published."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from effv2_kernels.errors import ModelError


@dataclass(frozen=True)
class Architecture:
    """The size of a network: four stages.

    ``ratios``: hidden channels of each FFN over its width; one number for all, one for each stage, or
    one for each block of each stage. ``attention_blocks``: how many of the last blocks of stages 3 and 4
    begin with attention; one number for both or a pair.
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
        for late, count in enumerate(self.late_attention()):
            if not 0 <= count <= self.depths[2 + late]:
                raise ModelError(
                    f"stage {3 + late} has {self.depths[2 + late]} blocks, so that many at most can have "
                    f"attention; got attention_blocks={self.attention_blocks}."
                )
        for stage, ratios in enumerate(self.block_ratios()):
            if len(ratios) != self.depths[stage] or any(int(self.widths[stage] * r) < 1 for r in ratios):
                raise ModelError(
                    f"stage {stage + 1} needs {self.depths[stage]} expansion ratios that leave at least one "
                    f"hidden channel; got {ratios}."
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
