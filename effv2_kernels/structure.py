"""A Network as plain data: a JSON string that describes the blocks, and a flat list of named tensors.

This is what a saved file, a pickle and the ``torch.ops.effv2.network`` op hold. The JSON names, block by
block, the tensors and the options that have another value than their default; the tensors follow in that
order, then scale and shift of every feature that has them.
"""

from __future__ import annotations

import json
from dataclasses import MISSING
from functools import lru_cache
from typing import Any

from effv2_kernels import blocks
from effv2_kernels.blocks import BLOCK_TYPES, EARLIER_KINDS
from effv2_kernels.container import parsed_object
from effv2_kernels.declaration import arguments, block_sizes, changed_options
from effv2_kernels.errors import ModelError
from effv2_kernels.outline import Outline, Part


def describe(network: blocks.Network) -> str:
    """The structure of a network as JSON; ``outline.tensors`` gives what belongs to it."""
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


@lru_cache(maxsize=64)
def parse(structure: str) -> Outline:
    """The outline that a structure string describes. Raises ModelError where it is not one."""
    try:
        data = parsed_object(structure)
        _check_object(data, "blocks", "features", "source")
        if not isinstance(data["blocks"], list) or not isinstance(data["features"], list):
            raise TypeError("'blocks' and 'features' are lists")
        for entry in data["blocks"]:
            _check_object(entry, "kind", "name", "options", "tensors")
            earlier = EARLIER_KINDS.get(entry["kind"])
            if earlier is not None:
                if entry["options"].keys() & earlier.options.keys():
                    raise ValueError(f"a block {entry['kind']} has no options {[*earlier.options]}")
                entry.update(kind=earlier.kind, options={**entry["options"], **earlier.options})
            _check_entry(entry)
        for feature in data["features"]:
            _check_object(feature, "block", "scaled")
            if type(feature["block"]) is not int or type(feature["scaled"]) is not bool:
                raise TypeError("a feature needs an integer 'block' and a boolean 'scaled'")
        if not isinstance(data["source"], str):
            raise TypeError("'source' is no string")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(
            f"this does not describe a network of blocks that this package knows: {error!r}."
        ) from error
    parts = [
        Part(e["kind"], e["name"], tuple(e["options"].items()), tuple(e["tensors"])) for e in data["blocks"]
    ]
    features = [(f["block"], f["scaled"]) for f in data["features"]]
    return Outline(tuple(parts), tuple(features), data["source"])


def _check_object(value: Any, *names: str) -> None:
    if not isinstance(value, dict) or value.keys() != {*names}:
        raise TypeError(f"an object needs {', '.join(names)}, and nothing else")


def _check_entry(entry: dict[str, Any]) -> None:
    made_of = arguments(BLOCK_TYPES[entry["kind"]])
    needed = {a.name for a in made_of if a.default is MISSING and not a.optional}
    known = {a.name for a in made_of}
    if not isinstance(entry["tensors"], list) or not isinstance(entry["options"], dict):
        raise TypeError("the tensors of a block are a list, and its options an object")
    given = [*entry["tensors"], *entry["options"]]
    if len(set(given)) != len(given) or not needed <= set(given) <= known:
        raise ValueError(f"a block {entry['kind']} has the fields {sorted(known)}, not {sorted(given)}")
    if not set(entry["tensors"]) <= {a.name for a in made_of if a.shape is not None}:
        raise ValueError(f"these fields of {entry['kind']} are not all tensors: {entry['tensors']}")
    types = {a.name: str if a.type is str else int for a in made_of if a.shape is None}
    if any(type(value) is not types[name] for name, value in entry["options"].items()):
        raise TypeError(f"the options of a block are integers and names, not {entry['options']}")
    flags = {a.name for a in made_of if a.type is bool}
    if any(value not in (0, 1) for name, value in entry["options"].items() if name in flags):
        raise ValueError(f"these options of {entry['kind']} are 0 or 1: {sorted(flags)}")
    if not isinstance(entry["name"], str):
        raise TypeError("the name of a block is a string")


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
    return described, len(kept), len(parse(described).keys)
