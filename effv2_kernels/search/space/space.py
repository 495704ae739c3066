"""What a search chooses from: for each stage its widths, depths, expansion ratios and attention blocks."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from effv2_kernels.errors import ModelError
from effv2_kernels.families.efficientformer_v2.architecture import MOST_WIDTH, Architecture
from effv2_kernels.search.space import moves, space_file
from effv2_kernels.search.space.choices import StageChoices
from effv2_kernels.search.space.moves import Action

__all__ = ["Action", "SearchSpace", "StageChoices"]

Choice = TypeVar("Choice")


@dataclass(frozen=True)
class SearchSpace:
    """All architectures that can be chosen, four stages of them; a subnet is an ``Architecture``.

    img_size: rows and columns of the images that the networks are meant for. Every block has any ratio of its
    stage by itself; attention is in the last two stages alone. Raises ModelError for what is no space.
    """

    stages: tuple[StageChoices, StageChoices, StageChoices, StageChoices]
    img_size: tuple[int, int] = (224, 224)
    in_channels: int = 3

    def __post_init__(self) -> None:
        if len(self.stages) != 4:
            raise ModelError(f"a search space has 4 stages, but got {len(self.stages)}.")
        if len(self.img_size) != 2 or min(self.img_size) < 1 or self.in_channels < 1:
            raise ModelError(
                f"img_size must be rows and columns, and they and in_channels positive; "
                f"got img_size={self.img_size}, in_channels={self.in_channels}."
            )
        if max(*self.img_size, self.in_channels) > MOST_WIDTH:
            raise ModelError(
                f"img_size and in_channels are at most {MOST_WIDTH}; "
                f"got img_size={self.img_size}, in_channels={self.in_channels}: give smaller ones."
            )
        for i, stage in enumerate(self.stages):
            stage.check(f"stage {i + 1}")
            if i < 2 and stage.attention_blocks != (0,):
                raise ModelError(
                    f"stage {i + 1}: only stages 3 and 4 have attention, but "
                    f"attention_blocks={stage.attention_blocks}."
                )

    @classmethod
    def read(cls, source: str | os.PathLike[str] = "efficientformerv2") -> SearchSpace:
        """The space of a built-in name ("efficientformerv2", "fashion") or of a JSON file.

        Raises ModelError where it is neither, or where the file is no space, with what is wrong.
        """
        text, what = space_file.text_of(source)
        return cls.from_json(text, what)

    @classmethod
    def from_json(cls, text: str, what: str = "the search space") -> SearchSpace:
        """The space that a text describes; ``what`` is what messages call it. Raises ModelError."""
        stages, img_size, in_channels = space_file.parse(text, what)
        try:
            return cls((stages[0], stages[1], stages[2], stages[3]), img_size, in_channels)
        except ModelError as error:
            raise ModelError(f"{what}: {error}") from error

    def to_json(self) -> str:
        """What ``from_json`` reads, one line for each stage."""
        return space_file.describe(self.stages, self.img_size, self.in_channels)

    def largest(self) -> Architecture:
        """The most of everything: what the weights of the supernet are made for."""
        return self._extreme(-1)

    def smallest(self) -> Architecture:
        """The least of everything."""
        return self._extreme(0)

    def _extreme(self, end: int) -> Architecture:
        depths = tuple(stage.depths[end] for stage in self.stages)
        return Architecture(
            tuple(stage.widths[end] for stage in self.stages),
            depths,
            tuple((stage.ratios[end],) * depth for stage, depth in zip(self.stages, depths, strict=True)),
            (self.stages[2].attention_blocks[end], self.stages[3].attention_blocks[end]),
        ).canonical()

    def sample(self, generator: random.Random | torch.Generator) -> Architecture:
        """A random subnet: each choice uniform, that of attention blocks among those that the depth has."""

        def one_of(choices: Sequence[Choice]) -> Choice:
            if isinstance(generator, random.Random):
                return choices[generator.randrange(len(choices))]
            return choices[int(torch.randint(len(choices), (), generator=generator))]

        widths, depths, ratios, attention = [], [], [], []
        for stage in self.stages:
            widths.append(one_of(stage.widths))
            depths.append(one_of(stage.depths))
            attention.append(one_of(stage.attention_for(depths[-1])))
            ratios.append(tuple(one_of(stage.ratios) for _ in range(depths[-1])))
        pair = (attention[2], attention[3])
        return Architecture(tuple(widths), tuple(depths), tuple(ratios), pair).canonical()

    def why_not(self, architecture: Architecture) -> str | None:
        """Why the space has no such subnet, as a clause; None where it has."""
        attention = (0, 0, *architecture.late_attention())
        for i, (stage, ratios) in enumerate(zip(self.stages, architecture.block_ratios(), strict=True)):
            for value, name in (
                (architecture.widths[i], "widths"),
                (architecture.depths[i], "depths"),
                (attention[i], "attention_blocks"),
                *((ratio, "ratios") for ratio in ratios),
            ):
                known = getattr(stage, name)
                if value not in known:
                    return f"{name} of stage {i + 1} are {', '.join(map(str, known))}, and not {value}"
        return None

    def __contains__(self, architecture: object) -> bool:
        return isinstance(architecture, Architecture) and self.why_not(architecture) is None

    def check(self, architecture: Architecture) -> Architecture:
        """The subnet in canonical form. Raises ModelError where the space has none such."""
        reason = self.why_not(architecture)
        if reason is not None:
            raise ModelError(f"the search space has no such subnet: {reason}.")
        return architecture.canonical()

    def frontier(self, architecture: Architecture) -> list[Action]:
        """Every way to make a subnet one step smaller; none for the smallest one.

        One block less in a stage, one attention less, one width step less, one ratio step less in one block.
        Following any of them again and again ends at ``smallest()``. Raises ModelError for no subnet.
        """
        return moves.smaller(self.stages, self.check(architecture))

    def growth(self, architecture: Architecture) -> list[Action]:
        """Every way to make a subnet one step larger: ``frontier`` backwards. Raises ModelError for none."""
        return moves.larger(self.stages, self.check(architecture))

    def neighbours(self, architecture: Architecture) -> list[Action]:
        """Every subnet that is one step away, smaller or larger: the mutations of an evolution.

        Raises ModelError for no subnet.
        """
        return self.frontier(architecture) + self.growth(architecture)

    def subnets(self) -> int:
        """How many there are, exactly."""
        return math.prod(stage.count() for stage in self.stages)

    def log10_subnets(self) -> float:
        """The decimal logarithm of how many there are."""
        return math.log10(self.subnets())
