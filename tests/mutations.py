"""Saved networks with something wrong: at random, by bytes and by the values of their JSON."""

from __future__ import annotations

import json
import random
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Raw:
    """JSON text that is not what ``json.dumps`` would write."""

    text: str


# In the place of any value. Of numbers the least and the largest that some reader might take for another one.
VALUES: list[Any] = [
    *(-1, 0, 1, 2, 3, 8, 2**20, 2**20 + 1, 2**31, 2**32, 2**32 + 1, 2**53 + 1, 2**62, 2**63 - 1, 2**63),
    *(2**64, 10**30, -(2**63), -(2**63) - 1, 1.0, 0.5, True, False, None),
    *("", "1", "stem", "gelu", "conv_downsample", "x" * 5000, [], {}, [[]], {"": ""}),
    *map(Raw, ("-0", "1e0", "1E400", "-1e400", "00", "01", "+1", "1.", ".5", "0x10", "9" * 400)),
    *map(Raw, ("NaN", "Infinity", "-Infinity", "nul", "True", "'a'", "", "[1,]", "/**/1", "\ufeff1")),
    *map(Raw, (r'"\ud800"', r'"\udc00\ud800"', r'"\ud83d\ude00"', r'"\u0000"', r'"\x41"', '"\t"', '"\x7f"')),
    *map(Raw, ("[" * 40 + "]" * 40, "[" * 100_000)),
]


def split(data: bytes) -> tuple[Any, bytes]:
    """The header and the values of a file, with the structure as an object."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"]["structure"] = json.loads(header["__metadata__"]["structure"])
    return header, data[8 + length :]


def join(header: Any, values: bytes) -> bytes:
    """A file with this header, whose objects may be lists of pairs, and texts ``Raw``."""
    text = _text(header, structure=True).encode("utf-8", "surrogatepass")
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + values


def _text(value: Any, *, structure: bool = False) -> str:
    if isinstance(value, Raw):
        return value.text
    if isinstance(value, (dict, tuple)):
        pairs = value.items() if isinstance(value, dict) else value
        said = []
        for key, item in pairs:
            text = _text(item, structure=structure and key == "__metadata__")
            if structure and key == "structure" and not isinstance(item, str):
                text = json.dumps(text)
            said.append(f"{json.dumps(key)}:{text}")
        return "{" + ",".join(said) + "}"
    if isinstance(value, list):
        return "[" + ",".join(_text(item) for item in value) + "]"
    return json.dumps(value)


def _places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(node, dict):
        for key in node:
            yield from _places(node[key], (*path, key))
    elif isinstance(node, list):
        for i in range(len(node)):
            yield from _places(node[i], (*path, i))


def changed_value(data: bytes, chance: random.Random) -> bytes:
    """One value of the header or of the structure removed, replaced, repeated, renamed, or put elsewhere."""
    header, values = split(data)
    structure = header["__metadata__"]["structure"]
    root = structure if chance.random() < 0.6 else header
    places = [path for path in _places(root) if path and path != ("__metadata__", "structure")]
    *path, key = chance.choice(places)
    parent = root
    for step in path:
        parent = parent[step]
    what = chance.choice(("remove", "replace", "replace", "repeat", "rename", "move"))
    if what == "remove":
        del parent[key]
    elif what == "replace":
        parent[key] = chance.choice(VALUES)
    elif what == "move":
        other = chance.choice([*parent] if isinstance(parent, dict) else range(len(parent)))
        parent[key], parent[other] = parent[other], parent[key]
    elif isinstance(parent, list):
        parent.insert(chance.randrange(len(parent) + 1), parent[key])
    elif what == "rename":
        other = chance.choice(["", "x", key.upper(), "weight", "bias", "stride", "activation"])
        parent[other] = parent.pop(key)
    else:
        pairs = (*parent.items(), (key, chance.choice([parent[key], *VALUES])))
        if not path:
            return join(pairs, values) if root is header else _with_structure(header, pairs, values)
        above = root
        for step in path[:-1]:
            above = above[step]
        above[path[-1]] = pairs
    return join(header, values)


def _with_structure(header: Any, structure: Any, values: bytes) -> bytes:
    header["__metadata__"]["structure"] = structure
    return join(header, values)


def changed_bytes(data: bytes, chance: random.Random) -> bytes:
    """A byte of the file, mostly of its header, that is another one, or gone, or there twice."""
    end = 8 + int.from_bytes(data[:8], "little") if chance.random() < 0.8 else len(data)
    at = chance.randrange(end)
    what = chance.randrange(4)
    if what == 0:
        return data[:at] + bytes([chance.randrange(256)]) + data[at + 1 :]
    if what == 1:
        return data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]
    if what == 2:
        return data[:at] + data[at + 1 :]
    return data[:at] + data[at : at + 1] + data[at:]


def truncated(data: bytes, chance: random.Random) -> bytes:
    """Less of it, or more."""
    if chance.random() < 0.1:
        return data + bytes(chance.randrange(1, 64))
    return data[: chance.randrange(len(data))]


def moved_offsets(data: bytes, chance: random.Random) -> bytes:
    """Tensors that overlap, leave holes, lie in another order or beyond the end."""
    header, values = split(data)
    tensors = [entry for name, entry in header.items() if name != "__metadata__"]
    entry, other = chance.choice(tensors), chance.choice(tensors)
    what = chance.randrange(5)
    if what == 0:
        entry["data_offsets"], other["data_offsets"] = other["data_offsets"], entry["data_offsets"]
    elif what == 1:
        by = chance.choice((-4, 4, -1, 1, 2**63, 2**64 - 4, len(values)))
        entry["data_offsets"] = [n + by for n in entry["data_offsets"]]
    elif what == 2:
        entry["data_offsets"][chance.randrange(2)] += chance.choice((-4, 4, 2**62))
    elif what == 3:
        entry["shape"][chance.randrange(len(entry["shape"]))] *= chance.choice((-1, 0, 2, 2**31, 2**62))
    else:
        entry["dtype"] = chance.choice(("F16", "BF16", "F64", "I32", "U8", "f32", "", "Q99"))
    return join(header, values)


def odd_values(data: bytes, chance: random.Random) -> bytes:
    """A weight that is not finite, or as large as can be."""
    header, values = split(data)
    entry = chance.choice([entry for name, entry in header.items() if name != "__metadata__"])
    size = 4 if entry["dtype"] == "F32" else 2
    begin, end = entry["data_offsets"]
    at = chance.randrange(begin, end, size)
    kinds = {4: (0x7F800000, 0xFF800000, 0x7FC00000, 0x7F7FFFFF, 1), 2: (0x7C00, 0xFC00, 0x7E00, 0x7BFF, 1)}
    odd = chance.choice(kinds[size]).to_bytes(size, "little")
    return join(header, values[:at] + odd + values[at + size :])


def padded_header(data: bytes, chance: random.Random) -> bytes:
    """White space, zeros or a mark in front of the header or behind it."""
    length = int.from_bytes(data[:8], "little")
    text = data[8 : 8 + length].rstrip(b" ")
    odd = chance.choice(
        (b" ", b"\n\t\r ", b"\0", b"\xef\xbb\xbf", b"\x0b", b"\xc2\xa0", b"{}", b",", b"\xff")
    )
    text = chance.choice((odd + text, text + odd, text.replace(b":", b":" + odd, 1)))
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def changed_metadata(data: bytes, chance: random.Random) -> bytes:
    """Another format, version or dtype, or a structure that is another text."""
    header, values = split(data)
    metadata = header["__metadata__"]
    key = chance.choice(
        ("format", "version", "dtype", "returns", "structure", "structure", "labels", "labels")
    )
    odd: list[Any] = [
        "",
        "1",
        "2",
        "3",
        "fp16",
        "fp32",
        "{}",
        "[]",
        "null",
        "\ufeff{}",
        "{}\0",
        '{"blocks":[]}',
    ]
    if key == "structure":
        text = _text(metadata["structure"])
        odd += ["\ufeff" + text, text + "\0", text + " ", " " + text, text + "x", text[:-1], "[" * 100_000]
        odd += [re.sub(r"\d+", "1e1", text, count=1), text.replace('"', "'", 1)]
    if key == "labels":
        odd += LABELS
    metadata[key] = chance.choice(odd)
    return join(header, values)


# Of five classes, or of another number, well and badly written.
LABELS = (
    '["a","b","c","d","e"]',
    ' ["a","b","c","d","e"]',
    '["a","b","c","d","e"] ',
    '["a","b","c","d","e"]x',
    '["a","b","c","d"]',
    '["a","b","c","d","e","f"]',
    '["a","a","a","a","a"]',
    '["a","b","c","d",""]',
    '["a","b","c","d",1]',
    '["a","b","c","d",null]',
    '["a","b","c","d",["e"]]',
    '["a","b","c","d",1E400]',
    '["a","b","c","d",NaN]',
    '["a","b","c","d",{"e":1,"e":2}]',
    *(
        f'["a","b","c","d","{name}"]'
        for name in ("\t", "\x7f", "\x80", "\x9f", "\xa0", "\xc2", "é\x85", "x" * 5000)
    ),
    *(
        f'["a","b","c","d","{name}"]'
        for name in (r"\n", r"\u0000", r"\u0085", r"\u00a0", r"\u001b[2J", r"\x41")
    ),
    *(f'["a","b","c","d","{name}"]' for name in (r"\ud800", r"\udc00\ud800", r"\ud83d\ude00", r"\/")),
    "[" * 40 + "]" * 40,
)

MUTATIONS = (
    *(changed_value, changed_value, changed_bytes, truncated, moved_offsets, odd_values, padded_header),
    changed_metadata,
)
