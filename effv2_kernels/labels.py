"""The names of a network's classes, as a saved file may hold them.

The C++ loader (``csrc/storage/labels.cpp``) has the same rules: a file is taken by both or by neither.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from effv2_kernels import blocks
from effv2_kernels.container import parsed_list


def classes_of(network: blocks.Network) -> int | None:
    """How many classes there are; None for a network that returns maps."""
    head = network.blocks[-1]
    return head.linear.weight.shape[0] if isinstance(head, blocks.Head) else None


def check(labels: Sequence[object], classes: int | None) -> None:
    """Raise ValueError where they are not one name for each class: text of one line, and not empty."""
    if classes is None:
        raise ValueError("the network has no classes, it returns maps")
    if len(labels) != classes:
        raise ValueError(f"there are {len(labels)} for {classes} classes")
    for i, label in enumerate(labels):
        if not isinstance(label, str):
            raise ValueError(f"that of class {i} is no string")
        if not label:
            raise ValueError(f"that of class {i} is empty")
        if any(c < " " or "\x7f" <= c <= "\x9f" for c in label):
            raise ValueError(f"that of class {i} has a control character, such as the end of a line")
        label.encode("utf-8")  # half of a pair of surrogates is no text


def to_json(labels: Sequence[str]) -> str:
    """The text that a file has."""
    return json.dumps(list(labels), ensure_ascii=False, separators=(",", ":"))


def from_json(text: str, classes: int | None) -> tuple[str, ...]:
    """The names in such a text, checked. Raises ValueError where it is none."""
    labels = parsed_list(text)
    check(labels, classes)
    return tuple(labels)
