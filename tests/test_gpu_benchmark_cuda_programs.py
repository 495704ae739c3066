"""bench/gpu of the CUDA kernels: the programs beside them, which are scripts here."""

import json
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("triton")

from bench.gpu import sanitizer, wrappers

ROOT = Path(__file__).resolve().parent.parent


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


# A tool that goes on when what it watches was ended, and the program that it watches.
LONG = """
import os, sys, time
sys.path[:0] = [{root!r}]
from bench.gpu import cuda_parity, sanitizer
def small(device):
    open({alive!r}, "w").write(str(os.getpid()))
    time.sleep(60)
cuda_parity.small = small
sanitizer.main(["--cpu", "--end-with-stdin"])
"""
PARENT = """
import sys
from pathlib import Path
sys.path[:0] = [{root!r}]
from bench.gpu import sanitizer
print(sanitizer.run({tool!r}, "memcheck", Path("folder")))
"""


def test_the_sanitizer_ends_with_the_process_that_started_it(tmp_path):
    """Or it would hold the GPU, since nobody counts its time any more."""
    alive = tmp_path / "alive"
    (tmp_path / "watched.py").write_text(LONG.format(root=str(ROOT), alive=str(alive)))
    tool = program(tmp_path / "tool", f"{sys.executable} {tmp_path / 'watched.py'}; sleep 60")
    parent = subprocess.Popen([sys.executable, "-c", PARENT.format(root=str(ROOT), tool=str(tool))])

    def is_gone(pid):
        try:
            return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
        except OSError:
            return True

    try:
        while not (alive.exists() and alive.read_text()):
            assert parent.poll() is None
            time.sleep(0.05)
        watched = int(alive.read_text())
        above = int(Path(f"/proc/{watched}/stat").read_text().split()[3])
        assert not is_gone(above)
    finally:
        parent.kill()
        parent.wait()
    for pid in (watched, above):
        for _ in range(400):
            if is_gone(pid):
                break
            time.sleep(0.05)
        assert is_gone(pid)


def test_the_sanitizer_is_told_what_to_watch(tmp_path):
    found = sanitizer.run(str(program(tmp_path / "tool", 'echo "$@"')), "racecheck", tmp_path)
    assert found["said"].startswith(
        "--tool racecheck --kernel-name kernel_substring=effv2 --error-exitcode 3 "
    )
    assert found["said"].endswith(f"bench/gpu/sanitizer.py --cuda {tmp_path} --end-with-stdin\n")
