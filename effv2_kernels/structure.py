"""A Network as plain data: a JSON string that describes the blocks, and a flat list of named tensors.

This is what a saved file, a pickle and the ``torch.ops.effv2.network`` op hold. The JSON names, block by
block, the tensors and the options that have another value than their default; the tensors follow in that
order, then scale and shift of every feature that has them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import MISSING
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from effv2_kernels import blocks
from effv2_kernels.blocks import BLOCK_TYPES, EARLIER_KINDS
from effv2_kernels.declaration import arguments, assemble, block_sizes, changed_options
from effv2_kernels.errors import ModelError


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


def describe(network: blocks.Network) -> str:
    """The structure of a network as JSON; ``tensors`` gives what belongs to it."""
    data = {
        "blocks": [_entry(b, name) for b, name in zip(network.blocks, network.names, strict=True)],
        "features": [{"block": f.block, "scaled": f.scale is not None} for f in network.features],
        "source": network.source,
    }
    return json.dumps(data, separators=(",", ":"))


def _entry(block: blocks.Block, name: str) -> dict[str, Any]:
    kind, options = block.kind, changed_options(block)
    for earlier_kind, earlier in EARLIER_KINDS.items():
        same = (kind, options) == (earlier.kind, earlier.options)
        if same and earlier.sizes.items() <= block_sizes(block).items():
            kind, options = earlier_kind, {}
    return {"kind": kind, "name": name, "options": options, "tensors": list(block.tensors())}


def tensors(network: blocks.Network) -> list[Tensor]:
    """The tensors of a network in the order of ``keys``."""
    found = [t for block in network.blocks for t in block.tensors().values()]
    for feature in network.features:
        if feature.scale is not None and feature.shift is not None:
            found += [feature.scale, feature.shift]
    return found


@lru_cache(maxsize=64)
def parse(structure: str) -> dict[str, Any]:
    """The data of a structure string. Raises ModelError where it is not one."""
    try:
        data = json.loads(structure)
        for entry in data["blocks"]:
            earlier = EARLIER_KINDS.get(entry["kind"])
            if earlier is not None:
                entry.update(kind=earlier.kind, options={**entry["options"], **earlier.options})
            _check_entry(entry)
        for feature in data["features"]:
            if type(feature["block"]) is not int or type(feature["scaled"]) is not bool:
                raise TypeError("a feature needs an integer 'block' and a boolean 'scaled'")
        if not isinstance(data["source"], str):
            raise TypeError("'source' is no string")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(
            f"this does not describe a network of blocks that this package knows: {error!r}."
        ) from error
    checked: dict[str, Any] = data
    return checked


def _check_entry(entry: dict[str, Any]) -> None:
    made_of = arguments(BLOCK_TYPES[entry["kind"]])
    needed = {a.name for a in made_of if a.default is MISSING and not a.optional}
    known = {a.name for a in made_of}
    given = [*entry["tensors"], *entry["options"]]
    if len(set(given)) != len(given) or not needed <= set(given) <= known:
        raise ValueError(f"a block {entry['kind']} has the fields {sorted(known)}, not {sorted(given)}")
    if not set(entry["tensors"]) <= {a.name for a in made_of if a.shape is not None}:
        raise ValueError(f"these fields of {entry['kind']} are not all tensors: {entry['tensors']}")
    types = {a.name: str if a.type is str else int for a in made_of if a.shape is None}
    if any(type(value) is not types[name] for name, value in entry["options"].items()):
        raise TypeError(f"the options of a block are integers and names, not {entry['options']}")
    if not isinstance(entry["name"], str):
        raise TypeError("the name of a block is a string")


def keys(structure: str) -> list[str]:
    """The name of every tensor, e.g. ``blocks.3.fc1_weight`` or ``features.0.scale``."""
    data = parse(structure)
    names = [f"blocks.{i}.{name}" for i, entry in enumerate(data["blocks"]) for name in entry["tensors"]]
    for i, feature in enumerate(data["features"]):
        if feature["scaled"]:
            names += [f"features.{i}.scale", f"features.{i}.shift"]
    return names


@lru_cache(maxsize=64)
def without_head(structure: str) -> tuple[str, int, int]:
    """The structure of all blocks but the last, which returns their map; their number, and their tensors'."""
    parse(structure)
    data = json.loads(structure)
    kept = data["blocks"][:-1]
    trunk = {
        "blocks": kept,
        "features": [{"block": len(kept) - 1, "scaled": False}],
        "source": data["source"],
    }
    described = json.dumps(trunk, separators=(",", ":"))
    return described, len(kept), len(keys(described))


def rebuild(structure: str, weights: Sequence[Tensor]) -> blocks.Network:
    """The network of a structure and its tensors, in the order of ``keys``; the tensors are not copied.

    Raises ModelError where number, shapes or dtypes of the tensors do not fit.
    """
    data = parse(structure)
    names = keys(structure)
    if len(names) != len(weights):
        raise ModelError(f"the structure names {len(names)} tensors, but {len(weights)} were given.")
    by_name = dict(zip(names, weights, strict=True))
    made: list[blocks.Block] = []
    for i, entry in enumerate(data["blocks"]):
        own = {name: by_name[f"blocks.{i}.{name}"] for name in entry["tensors"]}
        made.append(assemble(BLOCK_TYPES[entry["kind"]], {**own, **entry["options"]}))
    features = tuple(
        blocks.Feature(f["block"], by_name.get(f"features.{i}.scale"), by_name.get(f"features.{i}.shift"))
        for i, f in enumerate(data["features"])
    )
    block_names = tuple(entry["name"] for entry in data["blocks"])
    network = blocks.Network(tuple(made), block_names, features, data["source"])
    check(network)
    return network
