"""Modules import each other one way, or a newcomer could read none of them first."""

import ast
import re
import subprocess
import sys
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


def _imported_anywhere(path: Path) -> set[str]:
    """Also within functions, and for the type checker alone."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


_GPU = sorted(name for name in MODULES if f"{name}.".startswith("effv2_kernels.gpu."))


def test_what_runs_a_network_on_a_gpu_knows_no_backend():
    """It is given kernels, or asks for them by the name of their backend: ``gpu/kernels.py``."""
    assert len(_GPU) > 5
    for name in _GPU:
        for module in _imported_anywhere(MODULES[name]):
            top, _, rest = module.partition(".")
            assert top != "triton", f"{name} imports {module}"
            if top == "effv2_kernels":
                assert rest.partition(".")[0] not in ("triton", "cuda"), f"{name} imports {module}"


def test_what_runs_a_network_on_a_gpu_needs_no_triton():
    code = f"""
import sys
sys.modules["triton"] = None
import {", ".join(_GPU)}
"""
    subprocess.run([sys.executable, "-c", code], check=True)


_COMMANDS = ("effv2_kernels.__main__", "effv2_kernels.cli")


def test_the_library_knows_no_command():
    """Commands stand on it. Code that it runs in other processes is text, which is read as well."""
    library = {name: path for name, path in MODULES.items() if not name.startswith(_COMMANDS)}
    assert 100 < len(library) < len(MODULES) - 10
    for name, path in library.items():
        for line in path.read_text(encoding="utf-8").splitlines():
            imports = re.match(r"\s*(from|import) ", line) and re.search(r"\b(cli|__main__)\b", line)
            assert not imports, f"{name}: {line}"
