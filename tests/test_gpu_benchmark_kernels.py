"""bench/gpu/kernels.py: kernels that one machine compiles are found by another one's Triton."""

import json
import subprocess
import sys
import tarfile
import textwrap
from pathlib import Path

import pytest

pytest.importorskip("triton")

import triton

from bench.gpu import kernels

ROOT = Path(__file__).resolve().parent.parent

# Compiles, or finds, the kernels of a head; prints how often Triton's cache had one.
COMPILE = """
    import sys
    sys.path[:0] = [{root!r}]
    import torch, triton
    from effv2_kernels.shapes import head
    from bench.gpu import kernels, parity
    from effv2_kernels.triton.ahead import Compilation
    from pathlib import Path
    if {path!r}:
        print(kernels.bring_back(Path({path!r})))
    hits = []
    triton.knobs.compilation.listener = lambda **told: hits.append(told["cache_hit"])
    for launch in parity.launches_of(head(24, 10, 3, 3), "fp16", [1]):
        Compilation.of(launch, launch.tiles[0], 90).run()
    print(hits)
"""


def compile_in(cache, path=""):
    code = textwrap.dedent(COMPILE).format(root=str(ROOT), path=str(path))
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"TRITON_CACHE_DIR": str(cache), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.thorough
def test_another_machine_finds_them(tmp_path, monkeypatch):
    path = tmp_path / "kernels.tar.xz"
    assert compile_in(tmp_path / "here") == ["[False, False]"]
    assert kernels.keep(tmp_path / "here", path) == 2
    assert compile_in(tmp_path / "there", path) == ["2 kernels compiled ahead", "[True, True]"]
    # Where something has moved away, the paths are those of the new place.
    for file in (tmp_path / "there").rglob("__grp__*.json"):
        assert all(str(file.parent) in p for p in json.loads(file.read_text())["child_paths"].values())
    assert not any(file.suffix in (".ptx", ".ttir") for file in (tmp_path / "there").rglob("*"))
    # Twice is no harm.
    assert compile_in(tmp_path / "there", path)[0] == "2 kernels compiled ahead"


def test_another_build_of_triton_would_not_find_them(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path / "there"))
    with monkeypatch.context() as other:
        other.setattr(kernels, "identity", lambda: {"triton": "3.1.4", "key": "0123"})
        assert kernels.keep(tmp_path / "here", tmp_path / "kernels.tar.xz") == 0
    said = kernels.bring_back(tmp_path / "kernels.tar.xz")
    assert said == "kernels compiled by another build of Triton (3.1.4) are left alone"
    assert list((tmp_path / "there").iterdir()) == []


@pytest.mark.parametrize("content", [None, b"", b"not an archive"])
def test_what_is_no_file_of_kernels(tmp_path, content, monkeypatch):
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path / "there"))
    if content is not None:
        (tmp_path / "kernels.tar.xz").write_bytes(content)
    with pytest.raises((OSError, tarfile.TarError)):
        kernels.bring_back(tmp_path / "kernels.tar.xz")
