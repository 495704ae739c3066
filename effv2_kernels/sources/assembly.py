"""Collect the blocks of a network in order of execution, with their names and features."""

from __future__ import annotations

from torch import Tensor

from effv2_kernels import blocks
from effv2_kernels.sources import folding
from effv2_kernels.sources.node import Affine, Normalisation


class Assembly:
    """A network in the making."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._blocks: list[blocks.Block] = []
        self._names: list[str] = []
        self._features: list[blocks.Feature] = []
        self._norm: tuple[Tensor, Tensor] | None = None

    def add(self, named: list[tuple[str, blocks.Block]]) -> None:
        """Append blocks, each with the dotted path of its source module."""
        for name, block in named:
            self._names.append(name)
            self._blocks.append(block)

    @property
    def last(self) -> int:
        """Index of the block added last."""
        return len(self._blocks) - 1

    def add_feature(self, feature: blocks.Feature) -> None:
        """Return this feature map to the caller."""
        self._features.append(feature)

    def add_head(self, norm: Normalisation, classifiers: list[Affine], name: str = "head") -> None:
        """Append the head, and keep the norm that it has folded in. name: the path of the classifier."""
        self.add([(name, folding.head(name, norm, classifiers))])
        self._norm = folding.single("norm", norm.scale), folding.single("norm", norm.shift)

    def network(self) -> blocks.Network:
        """What was collected."""
        return blocks.Network(
            tuple(self._blocks), tuple(self._names), tuple(self._features), self._source, self._norm
        )
