"""The sizes of MobileNetV2: any width multiplier, and timm's deeper ones."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from effv2_kernels.errors import ModelError


class Stage(NamedTuple):
    """Inverted residuals of one width: the first has ``stride``, the others 1."""

    expansion: int  # hidden channels over those of the input
    channels: int
    repeats: int
    stride: int


# Table 2 of the paper.
_STAGES = (
    Stage(1, 16, 1, 1),
    Stage(6, 24, 2, 2),
    Stage(6, 32, 3, 2),
    Stage(6, 64, 4, 2),
    Stage(6, 96, 3, 1),
    Stage(6, 160, 3, 2),
    Stage(6, 320, 1, 1),
)
_STEM, _FEATURES = 32, 1280


class Block(NamedTuple):
    """One inverted residual."""

    expansion: int
    channels: int  # of its output
    stride: int


@dataclass(frozen=True)
class Architecture:
    """Channels of the first convolution and of the last one, and the stages between them."""

    stem: int
    stages: tuple[Stage, ...]
    features: int

    def __post_init__(self) -> None:
        if not self.stages or min(self.stem, self.features, *(n for s in self.stages for n in s)) < 1:
            raise ModelError(f"an architecture needs stages, and positive sizes; got {self}.")
        if any(s.stride not in (1, 2) for s in self.stages):
            raise ModelError(f"the stride of a stage is 1 or 2; got {self.stages}.")

    def blocks(self) -> list[Block]:
        """All inverted residuals, in order."""
        return [
            Block(stage.expansion, stage.channels, stage.stride if i == 0 else 1)
            for stage in self.stages
            for i in range(stage.repeats)
        ]

    def returned(self) -> tuple[int, ...]:
        """Of the first convolution (0) and the blocks (from 1 on) those that are last of their resolution.

        A map that the first convolution alone makes is not among them, as in timm.
        """
        strides = [block.stride for block in self.blocks()[1:]]
        return tuple(i + 1 for i, stride in enumerate([*strides, 2]) if stride == 2)


def scaled(width: float = 1.0, *, depth: float = 1.0, fixed_ends: bool = False) -> Architecture:
    """The paper's network with ``width`` times the channels and ``depth`` times the blocks.

    Channels are rounded to multiples of 8, and never down by more than a tenth; the last convolution has 1280
    or more. fixed_ends: the first and the last convolution are not scaled, nor the number of blocks beside
    them, as in timm's ``mobilenetv2_110d`` and ``_120d``.
    """
    if width <= 0 or depth <= 0:
        raise ModelError(f"width and depth are positive factors; got width={width}, depth={depth}.")
    last = len(_STAGES) - 1
    stages = tuple(
        stage._replace(
            channels=_rounded(stage.channels * width),
            repeats=stage.repeats if fixed_ends and i in (0, last) else math.ceil(stage.repeats * depth),
        )
        for i, stage in enumerate(_STAGES)
    )
    if fixed_ends:
        return Architecture(_STEM, stages, _FEATURES)
    return Architecture(_rounded(_STEM * width), stages, _rounded(_FEATURES * max(1.0, width)))


def _rounded(channels: float) -> int:
    found = max(8, int(channels + 4) // 8 * 8)
    return found + 8 if found < 0.9 * channels else found


VARIANTS: dict[str, Architecture] = {
    "mobilenetv2_035": scaled(0.35),
    "mobilenetv2_050": scaled(0.5),
    "mobilenetv2_075": scaled(0.75),
    "mobilenetv2_100": scaled(1.0),
    "mobilenetv2_110d": scaled(1.1, depth=1.2, fixed_ends=True),
    "mobilenetv2_120d": scaled(1.2, depth=1.4, fixed_ends=True),
    "mobilenetv2_140": scaled(1.4),
}
