"""bench/gpu: what one machine compiles for another one with a GPU, and whether that can be used there."""

import json
import os
import shutil
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

pytest.importorskip("triton")

from bench.gpu import prepare, prepared, run_all, worker
from effv2_kernels import _native

ROOT = Path(__file__).resolve().parent.parent
SUFFIX = EXTENSION_SUFFIXES[0]


@pytest.fixture
def folder(tmp_path):
    """As prepare.py fills it, with modules of nothing."""
    for name in (prepared.CUDA, prepared.NATIVE):
        (tmp_path / f"{name}{SUFFIX}").write_bytes(b"a module")
    (tmp_path / "wrappers").write_bytes(b"")
    prepared.describe(tmp_path, capability=90, cuda="13.0", commit="0123abcd")
    return tmp_path


def test_a_folder_that_can_be_used(folder):
    digest = prepared.digest(folder)
    prepared.module_of(folder, prepared.CUDA).write_bytes(b"another")
    assert prepared.digest(folder) != digest
    with pytest.raises(prepared.Unusable, match="cannot be loaded"):
        prepared.load(folder, prepared.CUDA)
    wanted, _ = run_all.parse(["--out", "x", "--prepared", str(folder), "--sanitizer", "racecheck"])
    assert (wanted.cuda, wanted.sanitizer) == (folder, "racecheck")
    wanted, _ = run_all.parse(["--out", "x", "--prepared", str(folder), "--cuda-seconds", "0"])
    assert (wanted.cuda, wanted.prepared) == (None, str(folder))
    assert run_all.parse(["--out", "x"])[0].cuda is None


def test_the_commit_is_that_of_the_folder_where_there_is_no_git(folder, monkeypatch):
    options = ["--out", "x", "--prepared", str(folder)]
    monkeypatch.setattr(run_all, "git", lambda *arguments: "of the checkout")
    assert run_all.parse(options)[0].commit == "of the checkout"
    monkeypatch.setattr(run_all, "git", lambda *arguments: "")
    assert run_all.parse(options)[0].commit == "0123abcd"
    assert run_all.parse([*options, "--commit", "given"])[0].commit == "given"


def test_folders_that_cannot(folder, monkeypatch, capsys, tmp_path_factory):
    def refused(folder, *more):
        with pytest.raises(SystemExit) as exit_:
            run_all.parse(["--out", "x", "--prepared", str(folder), *more])
        assert exit_.value.code == 2
        return capsys.readouterr().err

    assert "is no folder of bench/gpu/prepare.py" in refused(tmp_path_factory.mktemp("empty"))
    with monkeypatch.context() as other:
        other.setattr(prepared, "sources", lambda root=None: "0123")
        assert "was compiled from other sources than those of this checkout" in refused(folder)
    assert "name their folder with --prepared" in refused(
        folder, "--cuda-seconds", "0", "--sanitizer", "memcheck"
    )
    for name in (prepared.NATIVE, prepared.CUDA):
        prepared.module_of(folder, name).rename(folder / f"{name}.cpython-399-x86_64-linux-gnu.so")
        assert f"those in it: {name}.cpython-399-x86_64-linux-gnu.so" in refused(folder)
    with pytest.raises(SystemExit):
        run_all.parse(["--out", "x", "--sanitizer", "memcheck"])
    assert "name their folder with --prepared" in capsys.readouterr().err


def test_sources_are_told_apart(tmp_path):
    assert prepared.sources(tmp_path) == ""
    (tmp_path / "csrc" / "cuda").mkdir(parents=True)
    (tmp_path / "csrc" / "cuda" / "a.h").write_text("a")
    first = prepared.sources(tmp_path)
    (tmp_path / "csrc" / "cuda" / "a.md").write_text("words")
    assert prepared.sources(tmp_path) == first
    (tmp_path / "csrc" / "cuda" / "a.h").write_text("b")
    assert prepared.sources(tmp_path) != first


def test_all_that_is_hashed_is_there():
    assert [name for name in prepared._SOURCES if not (ROOT / name).exists()] == []


def test_a_source_tree_takes_the_cpu_engine_of_the_folder(folder, tmp_path_factory):
    """As a copy of the sources is run beside a GPU: nothing is compiled in it."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("effv2_kernels", "bench"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    shutil.copy(_native.__file__, prepared.module_of(folder, prepared.NATIVE))
    code = (
        f"import sys; sys.path[:0] = [{str(tree)!r}]\n"
        "from pathlib import Path\n"
        "from bench.gpu import prepared, scaling\n"
        f"prepared.load(Path({str(folder)!r}), prepared.NATIVE)\n"
        "scaling.SIZE = (32, 32)\n"
        "found = scaling.measure('s0', 1, 1, seconds=0.01)\n"
        "import effv2_kernels\n"
        "print(effv2_kernels.__file__, effv2_kernels._native.__file__, found.get('failure'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, timeout=120,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )  # fmt: skip
    engine = prepared.module_of(folder, prepared.NATIVE)
    assert done.stdout == f"{tree / 'effv2_kernels' / '__init__.py'} {engine} None\n", done.stderr


def test_the_worker_takes_what_it_can(folder, capsys, monkeypatch):
    monkeypatch.setattr(worker, "why_not", lambda: "there is no GPU")
    before = sys.modules["effv2_kernels._native"]
    wanted = {"out": str(folder / "out"), "prepared": str(folder)}
    assert worker.main([json.dumps(wanted)]) == worker.UNAVAILABLE
    assert "the CPU engine is not the prepared one: " in capsys.readouterr().out
    assert sys.modules["effv2_kernels._native"] is before
    loaded = []
    monkeypatch.setattr(prepared, "load", lambda *arguments: loaded.append(arguments))
    assert worker.main([json.dumps(wanted)]) == worker.UNAVAILABLE
    assert loaded == [(folder, prepared.NATIVE)]


# --- How it is made -----------------------------------------------------------------------------------------


@pytest.fixture
def compilers(monkeypatch):
    """What is run instead of compilers: it leaves the files that they would."""
    commands = []

    def run(command):
        commands.append([str(part) for part in command])
        out = next((part.partition("=")[2] for part in commands[-1] if "LIBRARY_OUTPUT" in part), None)
        if out is not None:
            name = prepared.CUDA if "-DEFFV2_CUDA=ON" in commands[-1] else prepared.NATIVE
            Path(out, f"{name}{SUFFIX}").write_bytes(b"x" * 100)
        if "-o" in commands[-1]:
            Path(commands[-1][commands[-1].index("-o") + 1]).write_bytes(b"y" * 50)
        if commands[-1][1].endswith("kernels.py"):
            Path(commands[-1][2]).write_bytes(b"z" * 50)

    monkeypatch.setattr(prepare, "_run", run)
    monkeypatch.setattr(prepare, "_release", lambda nvcc: "13.0")
    return commands


def test_prepared(compilers, tmp_path, capsys, monkeypatch):
    pytest.importorskip("pybind11")
    monkeypatch.setattr(prepare, "suffix_of", lambda python: SUFFIX)
    out = tmp_path / "out"
    out.mkdir()
    (out / "_native.cpython-399-x86_64-linux-gnu.so").touch()  # of an earlier call for another Python
    options = [str(out), "--python", sys.executable, "--nvcc", "nvcc", "--capability", "90"]
    assert prepare.main(options) == 0
    prepared.check(out)
    made_of = prepared.description(out)
    assert (made_of["sources"], made_of["capability"], made_of["cuda"]) == (prepared.sources(), 90, "13.0")
    assert sorted(path.name for path in out.iterdir()) == [
        f"_cuda{SUFFIX}", f"_native{SUFFIX}", "build.json", "kernels.tar.xz", "wrappers",
    ]  # fmt: skip
    assert "0.00 MB  wrappers" in capsys.readouterr().out
    assert "-arch=sm_90" in compilers[-2]
    assert compilers[-1][:3] == [
        sys.executable,
        str(ROOT / "bench" / "gpu" / "kernels.py"),
        str(out / "kernels.tar.xz"),
    ]
    of_cuda = [command for command in compilers if "-DEFFV2_CUDA=ON" in command]
    assert len(of_cuda) == 2
    assert all("-DEFFV2_CUDA_ARCHITECTURES=90" in command for command in of_cuda)
    # CMake looks for it from a folder of its own.
    monkeypatch.chdir(tmp_path)
    Path("bin").mkdir()
    Path("bin", "python").symlink_to(sys.executable)
    assert prepare.main([*options, "--python", "bin/python"]) == 0
    asked = {part for command in compilers for part in command if part.startswith("-DPython_EXECUTABLE")}
    assert asked == {f"-DPython_EXECUTABLE={path}" for path in (sys.executable, tmp_path / "bin" / "python")}
    monkeypatch.setattr(prepare, "MOST_BYTES", 10)
    assert prepare.main(options) == 1
    assert "more than the 0 MB that are carried" in capsys.readouterr().err


def test_what_to_prepare_with_is_missing(tmp_path, capsys):
    out = str(tmp_path / "out")
    assert prepare.main([out, "--python", "/no/python"]) == 2
    assert "/no/python is no Python that runs" in capsys.readouterr().err
    assert prepare.main([out, "--nvcc", "/no/nvcc"]) == 2
    error = capsys.readouterr().err
    assert "/no/nvcc is no compiler of NVIDIA's" in error or "no headers" in error
    bare = tmp_path / "python"  # an interpreter without packages
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -E "$@"\n')
    bare.chmod(0o755)
    assert prepare.main([out, "--python", str(bare)]) == 2
    error = capsys.readouterr().err
    assert (
        "has no torch and no triton; make prepare-gpu makes one with both" in error or "no headers" in error
    )
    assert not (tmp_path / "out").exists()
