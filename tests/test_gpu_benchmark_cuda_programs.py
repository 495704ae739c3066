"""bench/gpu of the CUDA kernels: the programs beside them, and the folder in which they come.

Scripts stand for the wrappers, the sanitizer and the compilers.
"""

import json
import stat
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

from bench.gpu import cuda_build, prepare_cuda, run_all, sanitizer, wrappers


def program(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.mark.parametrize(
    ("script", "tests", "failure"),
    [
        ("echo 'ok     max'; echo 'ok     a b'", {"max": "", "a b": ""}, None),
        (
            "echo 'ok     max'; echo 'FAILED mma: 5 of 32: 7'; exit 1",
            {"max": "", "mma": "5 of 32: 7"},
            "1 of 2 wrappers are wrong: mma",
        ),
        (
            "echo 'ok     max'; echo 'mma: no kernel image' >&2; exit 2",
            {"max": ""},
            "the wrappers ended with exit code 2: mma: no kernel image",
        ),
        ("exit 0", {}, "the wrappers ended with exit code 0: "),
        ("echo 'ok     max'; exec sleep 60", {"max": ""}, "the wrappers did not end within 0.5 s"),
    ],
)
def test_what_the_wrappers_say(tmp_path, script, tests, failure):
    found = wrappers.run(program(tmp_path / "wrappers", script), seconds=0.5 if "sleep" in script else 30)
    assert found["tests"] == tests
    assert found.get("failure") == failure
    json.dumps(found)


def test_wrappers_that_cannot_be_run(tmp_path):
    found = wrappers.run(tmp_path / "none")
    assert "cannot be run: No such file" in found["failure"]


@pytest.mark.parametrize(
    ("script", "failure"),
    [
        ("echo '========= ERROR SUMMARY: 0 errors'", None),
        (
            "echo '========= ERROR SUMMARY: 2 errors'; exit 3",
            "memcheck found something: ========= ERROR SUMMARY",
        ),
        ("exit 1", "memcheck ended with 1: nothing was said"),
        ("echo begun; sleep 60", "no answer within 0.5 s"),
    ],
)
def test_what_the_sanitizer_says(tmp_path, script, failure):
    seconds = 0.5 if "sleep" in script else 30
    found = sanitizer.run(str(program(tmp_path / "tool", script)), "memcheck", tmp_path, seconds)
    assert (found.get("failure") or found.get("late") or "None").startswith(str(failure))


def test_the_sanitizer_is_told_what_to_watch(tmp_path):
    found = sanitizer.run(str(program(tmp_path / "tool", 'echo "$@"')), "racecheck", tmp_path)
    assert found["said"].startswith(
        "--tool racecheck --kernel-name kernel_substring=effv2 --error-exitcode 3 "
    )
    assert found["said"].endswith(f"bench/gpu/sanitizer.py --cuda {tmp_path}\n")


# --- The kernels in a folder of their own -------------------------------------------------------------------


@pytest.fixture
def build(tmp_path):
    """A folder as prepare_cuda.py fills it, with modules of nothing."""
    suffix = cuda_build.importlib.machinery.EXTENSION_SUFFIXES[0]
    (tmp_path / f"_cuda{suffix}").write_bytes(b"a module")
    (tmp_path / "wrappers").write_bytes(b"")
    cuda_build.describe(tmp_path, capability=90, cuda="13.0")
    return tmp_path


def test_a_folder_that_can_be_used(build):
    assert cuda_build.check(build)["capability"] == 90
    digest = cuda_build.digest(build)
    cuda_build.module_of(build).write_bytes(b"another")
    assert cuda_build.digest(build) != digest
    with pytest.raises(cuda_build.Unusable, match="cannot be loaded"):
        cuda_build.load(build)
    wanted, _ = run_all.parse(["--out", "x", "--cuda", str(build), "--sanitizer", "racecheck"])
    assert (wanted.cuda, wanted.sanitizer) == (str(build), "racecheck")


def test_folders_that_cannot(build, monkeypatch, capsys, tmp_path_factory):
    def refused(folder, *more):
        with pytest.raises(SystemExit) as exit_:
            run_all.parse(["--out", "x", "--cuda", str(folder), *more])
        assert exit_.value.code == 2
        return capsys.readouterr().err

    assert "is no folder of bench/gpu/prepare_cuda.py" in refused(tmp_path_factory.mktemp("empty"))
    with monkeypatch.context() as other:
        other.setattr(cuda_build, "sources", lambda root=None: "0123")
        assert "were compiled from other sources than those of this checkout" in refused(build)
    cuda_build.module_of(build).rename(build / "_cuda.cpython-399-x86_64-linux-gnu.so")
    assert "those in it: _cuda.cpython-399-x86_64-linux-gnu.so" in refused(build)
    with pytest.raises(SystemExit):
        run_all.parse(["--out", "x", "--sanitizer", "memcheck"])
    assert "name their folder with --cuda" in capsys.readouterr().err


def test_sources_of_kernels_are_told_apart(tmp_path):
    assert cuda_build.sources(tmp_path) == ""
    (tmp_path / "csrc" / "cuda").mkdir(parents=True)
    (tmp_path / "csrc" / "cuda" / "a.h").write_text("a")
    first = cuda_build.sources(tmp_path)
    (tmp_path / "csrc" / "cuda" / "a.md").write_text("words")
    assert cuda_build.sources(tmp_path) == first
    (tmp_path / "csrc" / "cuda" / "a.h").write_text("b")
    assert cuda_build.sources(tmp_path) != first


# --- Prepared elsewhere -------------------------------------------------------------------------------------


@pytest.fixture
def compilers(monkeypatch):
    """What is run instead of compilers: it leaves the files that they would."""
    commands = []

    def run(command):
        commands.append([str(part) for part in command])
        out = next((part.partition("=")[2] for part in commands[-1] if "LIBRARY_OUTPUT" in part), None)
        if out is not None:
            Path(out, f"_cuda{prepare_cuda.suffix_of(sys.executable)}").write_bytes(b"x" * 100)
        if "-o" in commands[-1]:
            Path(commands[-1][commands[-1].index("-o") + 1]).write_bytes(b"y" * 50)

    monkeypatch.setattr(prepare_cuda, "_run", run)
    monkeypatch.setattr(prepare_cuda, "_release", lambda nvcc: "13.0")
    monkeypatch.setattr(
        prepare_cuda, "suffix_of", lambda python: cuda_build.importlib.machinery.EXTENSION_SUFFIXES[0]
    )
    return commands


def test_prepared(compilers, tmp_path, capsys, monkeypatch):
    pytest.importorskip("pybind11")
    out = tmp_path / "out"
    options = [str(out), "--python", sys.executable, "--nvcc", "nvcc", "--capability", "90"]
    assert prepare_cuda.main(options) == 0
    assert cuda_build.check(out) == {
        "sources": cuda_build.sources(), "capability": 90, "cuda": "13.0",
        "module": cuda_build.module_of(out).name,
    }  # fmt: skip
    assert "0.00 MB  wrappers" in capsys.readouterr().out
    assert "-arch=sm_90" in compilers[-1]
    assert all("-DEFFV2_CUDA_ARCHITECTURES=90" in command for command in compilers if "-S" in command)
    monkeypatch.setattr(prepare_cuda, "MOST_BYTES", 10)
    assert prepare_cuda.main(options) == 1
    assert "more than the 0 MB that are carried" in capsys.readouterr().err


def test_what_to_prepare_with_is_missing(tmp_path, capsys):
    assert prepare_cuda.main([str(tmp_path / "out"), "--python", "/no/python"]) == 2
    assert "/no/python is no Python that runs" in capsys.readouterr().err
    assert prepare_cuda.main([str(tmp_path / "out"), "--nvcc", "/no/nvcc"]) == 2
    error = capsys.readouterr().err
    assert "/no/nvcc is no compiler of NVIDIA's" in error or "no headers" in error
    assert not (tmp_path / "out").exists()
