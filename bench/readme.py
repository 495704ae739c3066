"""A README's text between two marks, which commands replace by what they measured."""

from __future__ import annotations

import re
from pathlib import Path


def put_between(path: Path, marks: tuple[str, str], body: str) -> None:
    """Replace what stands between two marks of a file, which stay. Exits where they are not there."""
    text = path.read_text(encoding="utf-8")
    begin, end = marks
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"{path} has no {begin} ... {end} to fill.")
    path.write_text(pattern.sub(lambda match: f"{begin}\n{body}\n{end}", text), encoding="utf-8")
