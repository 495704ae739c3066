"""The choices of one stage."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from effv2_kernels.errors import ModelError
from effv2_kernels.families.efficientformer_v2.architecture import MOST_DEPTH, MOST_HIDDEN, MOST_WIDTH

WIDTH_STEP = 8  # channels; every width is a multiple of it


@dataclass(frozen=True)
class StageChoices:
    """What a stage may have, each ascending.

    widths: channels, multiples of 8. depths: blocks. ratios: hidden channels of an FFN over the width, of
    each block by itself. attention_blocks: how many of the last blocks begin with attention.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    ratios: tuple[float, ...]
    attention_blocks: tuple[int, ...] = (0,)

    def check(self, what: str) -> None:
        """Raise ModelError, beginning with ``what``, where this is no choice of stages."""
        for name in ("widths", "depths", "ratios", "attention_blocks"):
            values = getattr(self, name)
            if not values:
                raise ModelError(f"{what}: {name} is empty: give at least one value.")
            # NaN would pass every comparison that follows.
            if not all(-math.inf < value < math.inf for value in values):
                raise ModelError(f"{what}: {name} must be finite numbers; got {values}.")
            if any(a >= b for a, b in pairwise(values)):
                raise ModelError(f"{what}: {name} must ascend, each value once; got {values}.")
        if self.widths[0] < 1 or any(width % WIDTH_STEP for width in self.widths):
            raise ModelError(f"{what}: widths must be positive multiples of {WIDTH_STEP}; got {self.widths}.")
        if self.depths[0] < 0 or self.attention_blocks[0] < 0:
            raise ModelError(
                f"{what}: depths and attention_blocks must not be negative; "
                f"got {self.depths} and {self.attention_blocks}."
            )
        if self.widths[-1] > MOST_WIDTH or self.depths[-1] > MOST_DEPTH:
            raise ModelError(
                f"{what}: at most {MOST_WIDTH} channels and {MOST_DEPTH} blocks are possible; "
                f"got {self.widths[-1]} and {self.depths[-1]}."
            )
        if self.ratios[-1] * self.widths[-1] > MOST_HIDDEN:
            raise ModelError(
                f"{what}: the ratio {self.ratios[-1]} makes more than {MOST_HIDDEN} hidden channels of the "
                f"width {self.widths[-1]}: give smaller ones."
            )
        if self.ratios[0] * self.widths[0] < 1:
            raise ModelError(
                f"{what}: the ratio {self.ratios[0]} leaves no hidden channel at width {self.widths[0]}."
            )
        for end, which in ((-1, "deepest"), (0, "shallowest")):
            if self.attention_blocks[end] > self.depths[end]:
                raise ModelError(
                    f"{what}: the {which} has {self.depths[end]} blocks, so that "
                    f"{self.attention_blocks[end]} of them cannot have attention; "
                    f"got depths={self.depths} and attention_blocks={self.attention_blocks}."
                )

    def attention_for(self, depth: int) -> tuple[int, ...]:
        """The numbers of attention blocks that a stage of so many blocks can have; never none."""
        return tuple(count for count in self.attention_blocks if count <= depth)

    def count(self) -> int:
        """How many different stages there are."""
        choices = len(self.ratios)
        bodies: list[int] = [len(self.attention_for(depth)) * choices**depth for depth in self.depths]
        return len(self.widths) * sum(bodies)
