"""What a network consists of, but for its weights: tells its engines apart, and makes it of new weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from effv2_kernels import blocks
from effv2_kernels.blocks import BLOCK_TYPES
from effv2_kernels.declaration import assemble, block_sizes
from effv2_kernels.errors import ModelError


@dataclass(frozen=True)
class Part:
    """One block: its kind, where it comes from, the options that have another value than their default, and
    the names of its tensors."""

    kind: str
    name: str
    options: tuple[tuple[str, int | str], ...]
    tensors: tuple[str, ...]


@dataclass(frozen=True)
class Outline:
    """The blocks of a network in order, its features (block, whether scaled), and the source it names."""

    parts: tuple[Part, ...]
    features: tuple[tuple[int, bool], ...]
    source: str

    @cached_property
    def _hash(self) -> int:
        return hash((self.parts, self.features, self.source))

    def __hash__(self) -> int:  # asked at every call of an op
        return self._hash

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """The name of every tensor, e.g. ``blocks.3.fc1_weight`` or ``features.0.scale``."""
        names = [f"blocks.{i}.{name}" for i, part in enumerate(self.parts) for name in part.tensors]
        for i, (_, scaled) in enumerate(self.features):
            if scaled:
                names += [f"features.{i}.scale", f"features.{i}.shift"]
        return tuple(names)

    def block(self, number: int, tensors: Mapping[str, Tensor]) -> blocks.Block:
        """One block, with its tensors out of those of the network by their ``keys``."""
        part = self.parts[number]
        own = {name: tensors[f"blocks.{number}.{name}"] for name in part.tensors}
        return assemble(BLOCK_TYPES[part.kind], {**own, **dict(part.options)})

    def rebuild(self, weights: Sequence[Tensor]) -> blocks.Network:
        """The network with these tensors, in the order of ``keys``; they are not copied.

        Raises ModelError where number, shapes or dtypes of the tensors do not fit.
        """
        if len(self.keys) != len(weights):
            raise ModelError(f"the structure names {len(self.keys)} tensors, but {len(weights)} were given.")
        by_name = dict(zip(self.keys, weights, strict=True))
        made = [self.block(i, by_name) for i in range(len(self.parts))]
        features = tuple(
            blocks.Feature(block, by_name.get(f"features.{i}.scale"), by_name.get(f"features.{i}.shift"))
            for i, (block, _) in enumerate(self.features)
        )
        network = blocks.Network(tuple(made), tuple(part.name for part in self.parts), features, self.source)
        check(network)
        return network


def tensors(network: blocks.Network) -> list[Tensor]:
    """The tensors of a network in the order of ``Outline.keys``."""
    found = [t for block in network.blocks for t in block.tensors().values()]
    for feature in network.features:
        if feature.scale is not None and feature.shift is not None:
            found += [feature.scale, feature.shift]
    return found


def check(network: blocks.Network) -> None:
    """Raise ModelError where the blocks of a network do not fit together, or a feature names no block."""
    if not network.blocks:
        raise ModelError("a network needs at least one block.")
    if len(network.names) != len(network.blocks):
        raise ModelError(f"{len(network.blocks)} blocks have {len(network.names)} names.")
    has_head = isinstance(network.blocks[-1], blocks.Head)
    if has_head == bool(network.features):
        raise ModelError("a network ends in a head or returns features: one of them, not both.")
    widths: list[int] = []
    for i, block in enumerate(network.blocks):
        sizes = block_sizes(block)
        if widths and sizes["in"] != widths[-1]:
            raise ModelError(
                f"block {i} ({block.kind}) takes {sizes['in']} channels, "
                f"but the block before it returns {widths[-1]}."
            )
        if isinstance(block, blocks.Head) and i + 1 < len(network.blocks):
            raise ModelError(f"block {i} is a head; it must be the last block.")
        widths.append(sizes["out"])
    order = [feature.block for feature in network.features]
    if order != sorted(set(order)):
        raise ModelError(f"features are listed in the order of their blocks, once each; got {order}.")
    for feature in network.features:
        if not 0 <= feature.block < len(widths):
            raise ModelError(f"a feature names block {feature.block}; there are {len(widths)} blocks.")
        width = widths[feature.block]
        for tensor in (feature.scale, feature.shift):
            if tensor is not None and (tuple(tensor.shape) != (width,) or tensor.dtype != torch.float32):
                raise ModelError(
                    f"scale and shift of the feature of block {feature.block} must be float32 of shape "
                    f"({width},), got {tensor.dtype} of shape {tuple(tensor.shape)}."
                )
        if (feature.scale is None) != (feature.shift is None):
            raise ModelError(f"the feature of block {feature.block} needs both scale and shift or neither.")
