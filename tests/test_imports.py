"""Modules import each other one way, or a newcomer could read none of them first."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import effv2_kernels

ROOT = Path(effv2_kernels.__file__).parent


def _name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_name(path): path for path in ROOT.rglob("*.py")}


def _imported_at_load(path: Path) -> set[str]:
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in MODULES else node.module)
    return found & MODULES.keys()


def test_no_circle():
    graph = {name: _imported_at_load(path) - {name} for name, path in MODULES.items()}
    assert len(graph["effv2_kernels.optimize"]) > 3, "the test sees no imports"
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))
