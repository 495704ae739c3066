"""Ctrl-C in processes of their own: what they print, how they end, and what they leave."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

pytest.importorskip("timm")

from training import ENVIRONMENT, arguments, write_digits

from effv2_kernels.train import state

# As `python -m effv2_kernels`, with something changed before.
STOPS = """
import pathlib, sys, time
from effv2_kernels import __main__ as command
{before}
command.interruption.ends(command.main)
"""


def _not_ignored():
    """Who starts tests in the background of a shell has them ignore SIGINT, and with them what they start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def started(*words, code=None):
    """A command in a group of its own, as a terminal has it."""
    process = subprocess.Popen(
        [sys.executable, *(["-m", "effv2_kernels"] if code is None else ["-c", code]), *map(str, words)],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=_not_ignored,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_for(process, path):
    deadline = time.monotonic() + 200
    while not path.exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def interrupted(process):
    """What it prints on stderr. Ctrl-C goes to all processes of a terminal's group."""
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT, err
    return err


def slow(module, name, reached):
    """Code in which a function of the package begins, says so by a file, and goes on for minutes."""
    return STOPS.format(
        before=f"""
import {module} as module
def slow(*args, **options):
    pathlib.Path({str(reached)!r}).touch()
    time.sleep(300)
module.{name} = slow
"""
    )


def test_while_modules_load(tmp_path):
    """It ends at once: the module is not asked, which prints and raises something else."""
    reached = tmp_path / "reached"
    code = f"""
import pathlib, sys, time
pathlib.Path({str(reached)!r}).touch()
try:
    time.sleep(300)
except BaseException:
    print("as compiled modules do", file=sys.stderr)
    raise ImportError("what they make of it")
"""
    (tmp_path / "slow_module.py").write_text(code)
    imports = f"sys.path.insert(0, {str(tmp_path)!r})\ncommand.main = lambda: __import__('slow_module')"
    with started(code=STOPS.format(before=imports)) as process:
        wait_for(process, reached)
        assert interrupted(process) == ""


def assert_ends_silently(before, reached):
    """Of a command with something changed before, which makes the file ``reached`` when it is to be ended."""
    with started(code=STOPS.format(before=before)) as process:
        wait_for(process, reached)
        assert interrupted(process) == ""


def test_a_file_that_was_being_written(tmp_path):
    """Nothing is left of it."""
    output, reached = tmp_path / "network.effv2", tmp_path / "reached"
    code = slow("effv2_kernels.replacing", "os.replace", reached)
    with started("convert", output, "--img-size", 64, "--model", "mobilenetv2_035", code=code) as process:
        wait_for(process, reached)
        assert interrupted(process) == ""
    assert os.listdir(tmp_path) == ["reached"]


def test_an_error_that_comes_of_it_is_not_told(tmp_path):
    reached = tmp_path / "reached"
    before = f"""
def main():
    pathlib.Path({str(reached)!r}).touch()
    try:
        time.sleep(300)
    except KeyboardInterrupt:
        raise RuntimeError("a worker is gone")
command.main = main
"""
    assert_ends_silently(before, reached)


def test_in_a_destructor_it_is_not_lost(tmp_path):
    reached = tmp_path / "reached"
    before = f"""
class Slow:
    def __del__(self):
        pathlib.Path({str(reached)!r}).touch()
        time.sleep(300)
def main():
    slow = Slow()
    del slow
    time.sleep(300)
command.main = main
"""
    assert_ends_silently(before, reached)


def test_who_ignores_it_goes_on(tmp_path):
    """As what a script starts in the background does."""
    reached = tmp_path / "reached"
    before = f"""
import signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
def main():
    pathlib.Path({str(reached)!r}).touch()
    time.sleep(1)
    return 3
command.main = main
"""
    with started(code=STOPS.format(before=before)) as process:
        wait_for(process, reached)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(60) == 3
        assert process.stderr.read() == ""


@pytest.mark.skipif(
    multiprocessing.get_start_method() != "fork", reason="others tell of a process that is gone"
)
def test_a_run_with_processes_that_load_images_goes_on(tmp_path):
    data, run = write_digits(tmp_path / "data", 32, 16), tmp_path / "run"
    words = (*arguments(data, run), "--workers", 2, "--epochs", 400)
    with started(*words) as process:
        wait_for(process, run / "last.pt")
        began = time.monotonic()
        assert interrupted(process) == "interrupted: the same command with --resume goes on\n"
        assert time.monotonic() - began < 30
    epochs = state.load(run / "last.pt")["epoch"]
    assert epochs >= 1
    with started(*words, "--resume") as process:
        while "going on behind epoch" not in (line := process.stdout.readline()):
            assert line, process.stderr.read()
        assert f"going on behind epoch {epochs}, 400 epochs in all" in line
        assert interrupted(process) == "interrupted: the same command goes on\n"
    assert not list(run.glob(".*.part"))


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (["latency", "--out", "{}/table.json"], "interrupted: the same command goes on\n"),
        (["latency", "--operators"], ""),
        (
            ["search", "--supernet", "s", "--data", "d.safetensors", "--output", "o", "--max-macs", "2"],
            "interrupted: the same command with --resume goes on\n",
        ),
        (
            ["supernet", "--data", "d", "--output", "o", "--resume"],
            "interrupted: the same command goes on\n",
        ),
        (["explain"], ""),
    ],
)
def test_how_to_go_on(tmp_path, words, advice):
    reached = tmp_path / "reached"
    code = slow(f"effv2_kernels.cli.{words[0]}", "run", reached)
    with started(*(word.format(tmp_path) for word in words), code=code) as process:
        wait_for(process, reached)
        assert interrupted(process) == advice


def test_one_of_several_processes_says_how_to_go_on(monkeypatch):
    from argparse import Namespace

    from effv2_kernels.cli.interruption import advice

    args = Namespace(command="train", resume=False)
    monkeypatch.setenv("RANK", "0")
    assert advice(args)
    monkeypatch.setenv("RANK", "1")
    assert advice(args) == ""
