"""Make docs/situations.md from tests/users/: what people do with these models, and what then happens.

Every test there that stands for a situation is marked ``@pytest.mark.situation(what, answer)``; the
docstring of its file says what the file is about.
"""

from __future__ import annotations

import argparse
import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "docs" / "situations.md"

_HEAD = """# What works around an optimised model

An optimised model stands in the place of a module, and the code around it expects a module. This table says
what people do with such models and what then happens: it works, or an error of this package says what to do
instead. Each row is a test in `tests/users/`, from which `python scripts/situations.py` makes this page.
"""


def situations(path: Path) -> tuple[str, list[tuple[str, str]]]:
    """The docstring of a file of tests, and (what people do, what happens) of its marks, each once."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: dict[tuple[str, str], None] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("mark.situation"):
            what, answer = (ast.literal_eval(argument) for argument in node.args)
            found[what, answer] = None
    return ast.get_docstring(tree) or "", list(found)


def page() -> str:
    """The whole page."""
    parts = [_HEAD]
    for path in sorted((ROOT / "tests" / "users").glob("test_*.py")):
        about, rows = situations(path)
        if not rows:
            continue
        name = path.stem.removeprefix("test_").replace("_", " ")
        parts.append(f"## {name.capitalize()}\n\n{' '.join(about.split())}\n")
        lines = [f"| {_cell(what)} | {_cell(answer)} |" for what, answer in rows]
        parts.append("\n".join(["| What people do | What happens |", "| --- | --- |", *lines]) + "\n")
    return "\n".join(parts)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.parse_args()
    TABLE.write_text(page(), encoding="utf-8")
    print(f"wrote {TABLE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
