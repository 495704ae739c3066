"""The header of a saved network's safetensors file, read more strictly than the format asks for.

The C++ loader (``csrc/storage``) has the same rules, so that a file is taken by both or by neither.
"""

from __future__ import annotations

import json
import os
import stat
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NoReturn

_LENGTH_BYTES = 8
_MOST_HEADER = 1 << 24  # bytes; that of a network of a hundred blocks has 100,000
_VALUE_BYTES = {"F32": 4, "F16": 2}
_METADATA = "__metadata__"


@dataclass(frozen=True)
class StoredTensor:
    """What the header says of a tensor: dtype, such as "F32", shape, and how many bytes it has."""

    dtype: str
    shape: tuple[int, ...]
    bytes: int


@dataclass(frozen=True)
class Container:
    """The strings of the metadata, and the tensors, by name."""

    metadata: dict[str, str]
    tensors: dict[str, StoredTensor]


def read(path: str) -> Container:
    """The header of a file.

    Raises OSError where it cannot be read or is no regular file, and ValueError where it is not one such file
    from beginning to end: its tensors lie one behind the other, and nothing else is there.
    """
    # A pipe is refused, not waited for.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise OSError("it is no regular file")
    with open(descriptor, "rb") as file:
        size = status.st_size
        front = file.read(_LENGTH_BYTES)
        if len(front) < _LENGTH_BYTES:
            raise ValueError(f"it has {len(front)} bytes")
        length = int.from_bytes(front, "little")
        if length > _MOST_HEADER:
            raise ValueError("its header is too long")
        if length > size - _LENGTH_BYTES:
            raise ValueError("it ends within its header")
        header = parsed_object(file.read(length).decode("utf-8"))
    metadata = header.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata must be strings")
    tensors, end = {}, 0
    for name, begin, until, tensor in sorted(map(_entry, header.items()), key=lambda entry: entry[1:3]):
        if begin != end:
            raise ValueError("its tensors overlap, or do not lie one behind the other")
        tensors[name], end = tensor, until
    if end != size - _LENGTH_BYTES - length:
        raise ValueError(f"its tensors end at byte {end} of {size - _LENGTH_BYTES - length}")
    return Container(metadata, tensors)


def sort_metadata(path: Path) -> None:
    """Sort the metadata of a file by name, so that what is the same has the same bytes.

    safetensors writes it in another order each time.
    """
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        header = json.loads(file.read(length))
        header[_METADATA] = dict(sorted(header.get(_METADATA, {}).items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= length  # the same characters, in another order
        file.seek(_LENGTH_BYTES)
        file.write(text.ljust(length))


def check_values(container: Container) -> None:
    """Raise ValueError where a tensor is not of 32-bit or 16-bit floats, as many as its shape says."""
    for name, tensor in container.tensors.items():
        if tensor.dtype not in _VALUE_BYTES:
            raise ValueError(f"'{name}' is stored as {tensor.dtype}; expected F32 or F16")
        if prod(tensor.shape) * _VALUE_BYTES[tensor.dtype] != tensor.bytes:
            raise ValueError(f"'{name}' has {tensor.bytes} bytes, which its shape does not fit")


def parsed_object(text: str) -> dict[str, Any]:
    """The JSON object in a text. Raises ValueError where it is none, or where an object has a name twice."""
    found: dict[str, Any] = _parsed(text, "{")
    return found


def parsed_list(text: str) -> list[Any]:
    """The same of a JSON list."""
    found: list[Any] = _parsed(text, "[")
    return found


def _parsed(text: str, first: str) -> Any:
    if not text.startswith(first):
        raise ValueError(f"it does not begin with {first}")
    try:
        return json.loads(text, object_pairs_hook=_once, parse_int=_integer, parse_constant=_no_number)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object has a name twice")
    for name, value in pairs:
        for text in (name, value):
            if isinstance(text, str):
                text.encode("utf-8")  # half of a pair of surrogates is no text
    return found


def _integer(text: str) -> int:
    if text == "-0":  # to some readers no integer
        raise ValueError("-0 is no integer")
    return int(text)


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _entry(item: tuple[str, Any]) -> tuple[str, int, int, StoredTensor]:
    name, entry = item
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"'{name}' needs dtype, shape and data_offsets, and nothing else")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or not _sizes(shape) or not _sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"'{name}' needs a dtype, a shape and two offsets")
    begin, end = offsets
    if begin > end:
        raise ValueError(f"'{name}' ends before it begins")
    return name, begin, end, StoredTensor(dtype, tuple(shape), end - begin)


def _sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(n) is int and 0 <= n < 2**63 for n in values)
