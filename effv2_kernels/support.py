"""What a backend's kernels can run of a block: the rest it refuses by name, and never runs otherwise."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from effv2_kernels.blocks import Block
from effv2_kernels.declaration import arguments, block_sizes


@dataclass(frozen=True)
class Limits:
    """What the kernels for one kind of block are made for; what is not named here, they all can.

    values: those that they take, by the name of an option or size. absent: the layers and tensors that they
    can do without.
    """

    values: Mapping[str, Collection[int | str]] = field(default_factory=dict)
    absent: Collection[str] = ()

    def exceeded_by(self, block: Block) -> str | None:
        """What of a block is beyond them, e.g. "ffn with activation='relu6'"; None where nothing is."""
        for a in arguments(type(block)):
            bound_to_option = a.shape is not None and a.shape.only_if is not None
            if a.optional and not bound_to_option and a.of(block) is None and a.field not in self.absent:
                return f"{block.kind} without {a.field}"
        given = {**block_sizes(block), **block.values()}
        for name, taken in self.values.items():
            if name in given and given[name] not in taken:
                return f"{block.kind} with {name}={given[name]!r}"
        return None


def refusal(limits: Mapping[str, Limits], block: Block) -> str | None:
    """What of a block kernels with these limits, by kind, cannot run; None where they run it."""
    return limits[block.kind].exceeded_by(block) if block.kind in limits else block.kind
