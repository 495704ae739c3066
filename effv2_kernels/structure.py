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

# What to do about a file with something that nobody here knows.
_NEWER = "use a package as new as the one that wrote it"
_MOST_SHOWN = 80  # characters


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


def parse(structure: str) -> Outline:
    """The outline that a structure string describes. Raises ModelError where it is not one."""
    try:
        return read(structure)
    except ValueError as error:
        raise ModelError(
            f"this does not describe a network of blocks that this package knows: {error}."
        ) from error


@lru_cache(maxsize=64)
def read(structure: str) -> Outline:
    """The same. Raises ValueError with the bare reason."""
    data = parsed_object(structure)
    _check_object(data, "the description", "blocks", "features", "source")
    for name in ("blocks", "features"):
        if not isinstance(data[name], list):
            raise ValueError(f"'{name}' is {_shown(data[name])}, and no list")
    parts = [_part(entry, f"block {i}") for i, entry in enumerate(data["blocks"])]
    features = []
    for i, feature in enumerate(data["features"]):
        _check_object(feature, f"feature {i}", "block", "scaled")
        if type(feature["block"]) is not int or type(feature["scaled"]) is not bool:
            raise ValueError(
                f"feature {i} is {_shown(feature)}; 'block' is an integer, 'scaled' true or false"
            )
        features.append((feature["block"], feature["scaled"]))
    if not isinstance(data["source"], str):
        raise ValueError(f"'source' is {_shown(data['source'])}, and no string")
    return Outline(tuple(parts), tuple(features), data["source"])


def _part(entry: Any, block: str) -> Part:
    """The part that an entry describes; block: what to call it in messages."""
    _check_object(entry, block, "kind", "name", "options", "tensors")
    kind, name, options, tensors = (entry[key] for key in ("kind", "name", "options", "tensors"))
    for key, value in (("kind", kind), ("name", name)):
        if not isinstance(value, str):
            raise ValueError(f"the {key} of {block} is {_shown(value)}, and no string")
    if not isinstance(options, dict):
        raise ValueError(f"the options of {block} are {_shown(options)}, and no object")
    if not isinstance(tensors, list) or not all(isinstance(tensor, str) for tensor in tensors):
        raise ValueError(f"the tensors of {block} are {_shown(tensors)}, and no list of names")
    if kind not in BLOCK_TYPES and kind not in EARLIER_KINDS:
        known = ", ".join((*BLOCK_TYPES, *EARLIER_KINDS))
        raise ValueError(f"{block} is of the kind {_shown(kind)}, and known are {known}; {_NEWER}")
    block = f"{block} ({kind})"
    earlier = EARLIER_KINDS.get(kind)
    if earlier is not None:
        for option in earlier.options:
            if option in options:
                raise ValueError(f"{block} has the option {option!r}, which is fixed for that kind")
        kind, options = earlier.kind, {**options, **earlier.options}
    _check_fields(BLOCK_TYPES[kind], block, options, tensors)
    return Part(kind, name, tuple(options.items()), tuple(tensors))


def _check_object(value: Any, what: str, *names: str) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{what} is {_shown(value)}, and no object")
    for name in names:
        if name not in value:
            raise ValueError(f"{what} lacks {name!r}")
    for name in value:
        if name not in names:
            raise ValueError(f"{what} has {_shown(name)}, and known are {', '.join(names)}; {_NEWER}")


def _check_fields(
    block_type: type[blocks.Block], block: str, options: dict[str, Any], tensors: list[str]
) -> None:
    made_of = arguments(block_type)
    of_tensors = [a.name for a in made_of if a.shape is not None]
    of_options = {a.name: a for a in made_of if a.shape is None}
    for what, given, known in (("tensor", tensors, of_tensors), ("option", options, of_options)):
        for name in given:
            if name not in known:
                raise ValueError(
                    f"{block} has the {what} {_shown(name)}, and known are {', '.join(known)}; {_NEWER}"
                )
    for a in made_of:
        if tensors.count(a.name) > 1:
            raise ValueError(f"{block} has the tensor {a.name!r} twice")
        if a.default is MISSING and not a.optional and a.name not in tensors and a.name not in options:
            raise ValueError(f"{block} lacks the {'option' if a.shape is None else 'tensor'} {a.name!r}")
    for name, value in options.items():
        wanted = of_options[name].type
        if type(value) is not (str if wanted is str else int):
            kind = "a name" if wanted is str else "an integer"
            raise ValueError(f"the option {name!r} of {block} is {_shown(value)}, and not {kind}")
        if wanted is bool and value not in (0, 1):
            raise ValueError(f"the option {name!r} of {block} is {_shown(value)}; expected 0 or 1")


def _shown(value: Any) -> str:
    """A value out of a file, for messages: as JSON, but for the quotes of a string, and not at any length."""
    text = repr(value) if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


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
