"""Make docs/api.md from the docstrings of what the package exports.

griffe reads the source, so that nothing is imported and nothing has to be built. A function is written with
its signature and its docstring, a dataclass with its fields as they stand in the source, with their comments.
"""

from __future__ import annotations

import argparse
import ast
import logging
import re
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

import griffe

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "api.md"
PACKAGE = "effv2_kernels"
# Modules whose contents users meet: the single blocks as ops, and what the arguments of these mean.
MODULES = ("ops", "blocks")
WIDTH = 110

_HEAD = """# The public names

`make docs` makes this page from the docstrings (`scripts/api.py`). The command line says its own options:
`python -m effv2_kernels COMMAND --help`.
"""

# What has no docstring of its own.
_SAID = {"__version__": "The version of this package."}


def exported(package: griffe.Module) -> dict[str, griffe.Object]:
    """What ``__all__`` names, resolved: a function where a submodule has the same name."""
    found: dict[str, griffe.Object] = {}
    for name in map(str, package.exports or ()):
        member = package[name]
        if member.is_module:
            member = member[name]
        found[name] = member.final_target if member.is_alias else member
    return found


def page() -> str:
    """The whole page."""
    logging.getLogger("griffe").setLevel(logging.ERROR)
    package = griffe.load(PACKAGE, search_paths=[ROOT], allow_inspection=False)
    names = exported(package)
    calls = {name: o for name, o in names.items() if o.is_function}
    classes = {name: o for name, o in names.items() if o.is_class}
    others = {name: o for name, o in names.items() if name not in calls and name not in classes}
    parts = [_HEAD, _docstring(package)]
    parts += ["## Functions\n", *(_function(f"{PACKAGE}.{name}", f) for name, f in calls.items())]
    returned = _reachable(package, [f.returns for f in calls.values()])
    parts += ["## What they return\n", *(_class(c) for c in returned if c not in classes.values())]
    parts += ["## Errors and other names\n", _names(classes, others)]
    for name in MODULES:
        module = package[name]
        parts += [f"## `{PACKAGE}.{name}`\n", _docstring(module)]
        own = _classes(module)
        held = _reachable(package, [a.annotation for c in own for a in _fields(c)])
        parts += [_class(c) for c in dict.fromkeys([*own, *held])]
    return "\n".join(part for part in parts if part)


def _classes(module: griffe.Module) -> list[griffe.Class]:
    """The public ones of a module, and of what it imports those that are defined below it."""
    found = []
    for member in module.members.values():
        if member.is_alias:
            if not member.target_path.startswith(f"{module.path}."):
                continue
            member = member.final_target
        if member.is_class and not member.name.startswith("_"):
            found.append(member)
    return found


def _names(classes: dict[str, griffe.Object], others: dict[str, griffe.Object]) -> str:
    lines = ["| Name | Is a | Meaning |", "| --- | --- | --- |"]
    for name, c in classes.items():
        bases = ", ".join(f"`{base}`" for base in c.bases)
        lines.append(f"| `{PACKAGE}.{name}` | {bases} | {_summary(c)} |")
    for name, o in others.items():
        kind = type(ast.literal_eval(str(o.value))).__name__ if o.annotation is None else o.annotation
        lines.append(f"| `{PACKAGE}.{name}` | `{kind}` | {_summary(o) or _SAID[name]} |")
    return "\n".join(lines) + "\n"


def _summary(o: griffe.Object) -> str:
    return " ".join(o.docstring.value.partition("\n\n")[0].split()) if o.docstring else ""


def _reachable(package: griffe.Module, annotations: Iterable[object]) -> list[griffe.Class]:
    """The package's own classes in annotations, and those that the fields of such dataclasses hold."""
    found: dict[str, griffe.Class] = {}
    waiting = list(annotations)
    while waiting:
        annotation = waiting.pop(0)
        if not isinstance(annotation, griffe.Expr):
            continue
        for part in annotation.iterate(flat=True):
            path = part.canonical_path if isinstance(part, griffe.Expr) else ""
            if not path.startswith(f"{PACKAGE}.") or path in found:
                continue
            c = package[path.removeprefix(f"{PACKAGE}.")]
            c = c.final_target if c.is_alias else c
            if c.is_class and c.path not in found:
                found[c.path] = c
                waiting += [a.annotation for a in _fields(c)]
    return list(found.values())


def _fields(c: griffe.Class) -> list[griffe.Attribute]:
    """Of a dataclass."""
    if "dataclass" not in c.labels:
        return []
    return [a for a in c.members.values() if a.is_attribute and a.is_public and "property" not in a.labels]


def _function(title: str, function: griffe.Function, level: int = 3) -> str:
    signature = f"```python\n{_signature(function)}\n```\n"
    return f"{'#' * level} `{title}`\n\n{signature}\n{_docstring(function, function)}"


def _class(c: griffe.Class) -> str:
    parts = [f"### `{c.path}`\n", _docstring(c, c.members.get("__init__"))]
    if fields := _fields(c):
        lines = c.filepath.read_text(encoding="utf-8").splitlines()
        lines = lines[fields[0].lineno - 1 : fields[-1].endlineno]
        parts.append("```python\n" + textwrap.dedent("\n".join(lines)) + "\n```\n")
    own = [m for m in c.members.values() if not m.is_alias and m.is_public and m.docstring]
    properties = [f"- `{m.name}`: {_summary(m)}" for m in own if m.is_attribute]
    if properties:
        parts.append("\n".join(properties) + "\n")
    methods = [m for m in own if m.is_function and not m.name.startswith("_")]
    parts += [_function(f"{c.name}.{m.name}", m, level=4) for m in methods]
    return "\n".join(parts)


def _signature(function: griffe.Function) -> str:
    kinds = griffe.ParameterKind
    given: list[str] = []
    bare = True  # whether a * has still to say that the rest is by keyword
    for p in function.parameters:
        if p.name in ("self", "cls") and not given:
            continue
        if p.kind is kinds.keyword_only and bare:
            given.append("*")
        if p.kind in (kinds.keyword_only, kinds.var_positional):
            bare = False
        stars = {kinds.var_positional: "*", kinds.var_keyword: "**"}.get(p.kind, "")
        text = stars + p.name + (f": {p.annotation}" if p.annotation is not None else "")
        if p.default is not None and not stars:
            text += f" = {p.default}" if p.annotation is not None else f"={p.default}"
        given.append(text)
    returns = f" -> {function.returns}" if function.returns is not None else ""
    line = f"{function.name}({', '.join(given)}){returns}"
    if len(line) <= WIDTH - 20:
        return line
    return "\n".join([f"{function.name}(", *(f"    {text}," for text in given), f"){returns}"])


def _docstring(o: griffe.Object, function: griffe.Object | None = None) -> str:
    """As it stands; paragraphs that explain parameters become lists."""
    if o.docstring is None:
        return ""
    names = [p.name for p in function.parameters] if function is not None and function.is_function else []
    return "\n\n".join(_paragraph(text, names) for text in o.docstring.value.split("\n\n")) + "\n"


def _paragraph(text: str, names: list[str]) -> str:
    items = list(_items(" ".join(text.split()), names))
    if not items:
        return text
    lines = [f"- `{name}`: {about}" for name, about in items]
    return "\n".join(
        textwrap.fill(line, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
        for line in lines
    )


def _items(text: str, names: list[str]) -> Iterator[tuple[str, str]]:
    """(parameter, what is said of it), where a paragraph begins with a parameter, or with several."""
    one = "|".join(map(re.escape, names)) or "(?!)"
    starts = list(re.finditer(rf"(?:^|(?<=[.;)] ))((?:{one})(?:, (?:{one}))*): ", text))
    if not starts or starts[0].start() != 0:
        return
    for here, behind in zip(starts, [*starts[1:], None], strict=True):
        about = text[here.end() : behind.start() if behind else None].strip()
        yield here[1].replace(", ", "`, `"), about.removesuffix(";") + ("." if about.endswith(";") else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.parse_args()
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
