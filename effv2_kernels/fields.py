"""The fields of small JSON files that people read and write, each checked with an error that names it.

``what`` is what a message calls the value: "widths of stage 2 of my_space.json".
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from effv2_kernels.checkpoint.choice import listed
from effv2_kernels.container import parsed_object
from effv2_kernels.errors import ModelError

_MOST = 2**31  # no size of a network comes near it, and whoever computes with more overflows


def read_text(path: str | os.PathLike[str], what: str) -> str:
    """The text of a file. Raises ModelError where there is none, or where it is no text."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")  # Windows' begin with a mark
    except OSError as error:
        raise ModelError(f"{what} '{os.fspath(path)}' cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise ModelError(f"{what} '{os.fspath(path)}' is no text: give a JSON file.") from error


def parse(text: str, what: str) -> dict[str, Any]:
    """The JSON object that a text is. Raises ModelError where it is none."""
    try:
        return parsed_object(text.strip())
    except ValueError as error:
        raise ModelError(f"{what} is no JSON object: {error}.") from error


def check_names(value: Any, what: str, required: Sequence[str], optional: Sequence[str] = ()) -> None:
    """Raise ModelError where the value is no JSON object, lacks a name, or has one that nobody knows."""
    if not isinstance(value, dict):
        raise ModelError(f"{what} is {shown(value)}, and no JSON object with {', '.join(required)}.")
    for name in required:
        if name not in value:
            raise ModelError(f"{what} lacks {name!r}; it has {listed([*map(repr, value)])}.")
    for name in value:
        if name not in (*required, *optional):
            raise ModelError(f"{what} has {name!r}, and known are {', '.join((*required, *optional))}.")


def integer(value: Any, what: str) -> int:
    """Raises ModelError for anything but an integer, and for one of more than 31 bits."""
    if type(value) is not int:
        raise ModelError(f"{what} must be an integer, but is {shown(value)}.")
    if abs(value) >= _MOST:
        raise ModelError(f"{what} must be an integer below 2^31, but is {shown(value)}.")
    return value


def number(value: Any, what: str) -> float:
    """Raises ModelError for anything but a number, and for one that a float does not hold, such as 1e400."""
    if type(value) not in (int, float):
        raise ModelError(f"{what} must be a number, but is {shown(value)}.")
    try:
        found = float(value)
    except OverflowError:  # of an integer
        found = math.inf
    if not math.isfinite(found):
        raise ModelError(f"{what} must be a finite number, but is {shown(value)}.")
    return found


def text(value: Any, what: str) -> str:
    """Raises ModelError for anything but a text."""
    if not isinstance(value, str):
        raise ModelError(f"{what} must be a text, but is {shown(value)}.")
    return value


def items(value: Any, what: str, count: int | None = None) -> list[Any]:
    """A list, of ``count`` entries where that is given. Raises ModelError for anything else."""
    if not isinstance(value, list):
        raise ModelError(f"{what} must be a list, but is {shown(value)}.")
    if count is not None and len(value) != count:
        raise ModelError(f"{what} must have {count} entries, but has {len(value)}: {shown(value)}.")
    return value


def integers(value: Any, what: str, count: int | None = None) -> tuple[int, ...]:
    """A list of integers, of ``count`` where that is given. Raises ModelError for anything else."""
    return tuple(integer(entry, f"each of {what}") for entry in items(value, what, count))


def numbers(value: Any, what: str) -> tuple[float, ...]:
    """A list of numbers. Raises ModelError for anything else."""
    return tuple(number(entry, f"each of {what}") for entry in items(value, what))


def short(value: float) -> float:
    """4 for 4.0, as people write it; other numbers as they are."""
    return int(value) if float(value).is_integer() else value


def shown(value: Any, most: int = 80) -> str:
    """A value out of a file, for messages, and not more than so many characters of it."""
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= most else f"{text[:most]}..."
