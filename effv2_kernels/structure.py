"""A Network as plain data: a JSON string that describes the blocks, and a flat list of named tensors.

This is what a saved file, a pickle and the ``torch.ops.effv2.network`` op hold. The JSON names, block by
block, the fields that are tensors and the values of the others; the tensors follow in that order, then
scale and shift of every feature that has them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import MISSING, fields
from functools import lru_cache
from typing import Any, TypeAlias

import torch
from torch import Tensor

from effv2_kernels import blocks
from effv2_kernels.errors import ModelError

Shape: TypeAlias = tuple[int, ...]

BLOCK_TYPES: dict[str, type[blocks.Block]] = {
    t.kind: t
    for t in (
        blocks.Stem,
        blocks.FFN,
        blocks.Attention,
        blocks.ConvDownsample,
        blocks.AttentionDownsample,
        blocks.Head,
    )
}

# The shapes that the comments in blocks.py state; a name is one size for the whole block.
_SHAPES: dict[str, dict[str, tuple[str | int, ...]]] = {
    "stem": {
        "conv1_weight": ("mid", "in", 3, 3),
        "conv1_bias": ("mid",),
        "conv2_weight": ("out", "mid", 3, 3),
        "conv2_bias": ("out",),
    },
    "ffn": {
        "fc1_weight": ("hidden", "in"),
        "fc1_bias": ("hidden",),
        "dw_weight": ("hidden", 3, 3),
        "dw_bias": ("hidden",),
        "fc2_weight": ("in", "hidden"),
        "fc2_bias": ("in",),
    },
    "attention": {
        "qkv_weight": ("qkv", "in"),
        "qkv_bias": ("qkv",),
        "local_weight": ("values", 3, 3),
        "local_bias": ("values",),
        "mix1_weight": ("heads", "heads"),
        "bias": ("heads", "rows", "cols"),
        "mix2_weight": ("heads", "heads"),
        "mix2_bias": ("heads",),
        "proj_weight": ("in", "values"),
        "proj_bias": ("in",),
        "dw_weight": ("in", 3, 3),
        "dw_bias": ("in",),
    },
    "conv_downsample": {"weight": ("out", "in", 3, 3), "bias": ("out",)},
    "attention_downsample": {
        "dw_weight": ("in", 3, 3),
        "dw_bias": ("in",),
        "q_weight": ("keys", "in"),
        "q_bias": ("keys",),
        "kv_weight": ("kv", "in"),
        "kv_bias": ("kv",),
        "local_weight": ("values", 3, 3),
        "local_bias": ("values",),
        "bias": ("heads", "rows", "cols"),
        "proj_weight": ("out", "values"),
        "proj_bias": ("out",),
        "conv_weight": ("out", "in", 3, 3),
        "conv_bias": ("out",),
    },
    "head": {"weight": ("out", "in"), "bias": ("out",)},
}


def tensor_shapes(kind: str, sizes: dict[str, int], options: dict[str, int]) -> dict[str, Shape]:
    """The shape of every tensor of a block with these sizes and options, by field name."""
    known = {**sizes, **_option_sizes(kind, options)}
    return {
        name: tuple(s if isinstance(s, int) else known[s] for s in symbols)
        for name, symbols in _SHAPES[kind].items()
        if not _absent(kind, name, options)
    }


def block_sizes(block: blocks.Block) -> dict[str, int]:
    """The sizes of a block by name: ``in``, ``out``, ``hidden`` and so on.

    Raises ModelError where a tensor is missing, not float32, or has a shape that does not fit the others.
    """
    options = block.options()
    sizes = _option_sizes(block.kind, options)
    tensors = block.tensors()
    for name, symbols in _SHAPES[block.kind].items():
        tensor = tensors.get(name)
        if tensor is None:
            if _absent(block.kind, name, options):
                continue
            raise ModelError(f"block {block.kind}: {name} is missing; expected a tensor {_shown(symbols)}.")
        if tensor.dtype != torch.float32:
            raise ModelError(f"block {block.kind}: {name} is {tensor.dtype}; expected torch.float32.")
        shape = tuple(tensor.shape)
        fits = len(shape) == len(symbols) and min(shape, default=1) > 0
        if fits:
            for symbol, size in zip(symbols, shape, strict=True):
                fits &= size == (symbol if isinstance(symbol, int) else sizes.setdefault(symbol, size))
        if not fits:
            known = {s: sizes[s] for s in symbols if isinstance(s, str) and s in sizes}
            raise ModelError(
                f"block {block.kind}: {name} has shape {shape}, expected {_shown(symbols)} "
                f"with {', '.join(f'{s} = {size}' for s, size in known.items()) or 'positive sizes'}."
            )
    sizes.setdefault("out", sizes["in"])
    return sizes


def _absent(kind: str, name: str, options: dict[str, int]) -> bool:
    """The one case of an optional tensor: the strided convolution of an attention."""
    return kind == "attention" and name.startswith("dw_") and options.get("stride", 1) == 1


def _option_sizes(kind: str, options: dict[str, int]) -> dict[str, int]:
    if "heads" not in options:
        return {}
    heads, key_dim, value_dim = options["heads"], options["key_dim"], options["value_dim"]
    if min(heads, key_dim, value_dim) < 1 or options.get("stride", 1) not in (1, 2):
        raise ModelError(
            f"block {kind}: heads, key_dim and value_dim must be positive and stride 1 or 2; "
            f"got {', '.join(f'{name} = {value}' for name, value in options.items())}."
        )
    keys, values = heads * key_dim, heads * value_dim
    return {
        "heads": heads,
        "keys": keys,
        "values": values,
        "kv": keys + values,
        "qkv": 2 * keys + values,
    }


def _shown(symbols: tuple[str | int, ...]) -> str:
    return f"({', '.join(map(str, symbols))}{',' if len(symbols) == 1 else ''})"


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
        "blocks": [
            {"kind": b.kind, "name": name, "options": b.options(), "tensors": list(b.tensors())}
            for b, name in zip(network.blocks, network.names, strict=True)
        ],
        "features": [{"block": f.block, "scaled": f.scale is not None} for f in network.features],
        "source": network.source,
    }
    return json.dumps(data, separators=(",", ":"))


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
            _check_entry(entry)
        for feature in data["features"]:
            if type(feature["block"]) is not int or type(feature["scaled"]) is not bool:
                raise TypeError("a feature needs an integer 'block' and a boolean 'scaled'")
        if not isinstance(data["source"], str):
            raise TypeError("'source' is no string")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(
            f"this does not describe a network of EfficientFormerV2 blocks: {error!r}."
        ) from error
    checked: dict[str, Any] = data
    return checked


def _check_entry(entry: dict[str, Any]) -> None:
    block_type = BLOCK_TYPES[entry["kind"]]
    optional = {f.name for f in fields(block_type) if f.default is not MISSING}
    known = {f.name for f in fields(block_type)}
    given = [*entry["tensors"], *entry["options"]]
    if len(set(given)) != len(given) or not known - optional <= set(given) <= known:
        raise ValueError(f"a block {entry['kind']} has the fields {sorted(known)}, not {sorted(given)}")
    if not set(entry["tensors"]) <= set(_SHAPES[entry["kind"]]):
        raise ValueError(f"these fields of {entry['kind']} are not all tensors: {entry['tensors']}")
    if any(type(value) is not int for value in entry["options"].values()):
        raise TypeError(f"the options of a block are integers, not {entry['options']}")
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
    data = parse(structure)
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
        block_type = BLOCK_TYPES[entry["kind"]]
        flags = {f.name for f in fields(block_type) if f.type == "bool"}
        options = {k: bool(v) if k in flags else v for k, v in entry["options"].items()}
        made.append(block_type(**own, **options))
    features = tuple(
        blocks.Feature(f["block"], by_name.get(f"features.{i}.scale"), by_name.get(f"features.{i}.shift"))
        for i, f in enumerate(data["features"])
    )
    block_names = tuple(entry["name"] for entry in data["blocks"])
    network = blocks.Network(tuple(made), block_names, features, data["source"])
    check(network)
    return network
