"""Training in processes of their own that are killed, once in the middle of writing a checkpoint."""

import signal
import subprocess
import sys
import time

import pytest
from checks import one_torch_thread

pytest.importorskip("timm")

from training import ENVIRONMENT, arguments, same, write_digits, write_space

from effv2_kernels.__main__ import main
from effv2_kernels.errors import TrainingError
from effv2_kernels.train import state

# Writes half of the second checkpoint, and is gone as by `kill -9` or a power cut.
KILL_ITSELF = """
import os, signal, sys
from effv2_kernels.__main__ import main
from effv2_kernels.train import state

flush, seen = os.fsync, []

def fsync(handle):
    if "/.last.pt." in os.readlink(f"/proc/self/fd/{handle}"):
        seen.append(handle)
        if len(seen) == 2:
            os.ftruncate(handle, os.fstat(handle).st_size // 2)
            flush(handle)
            os.kill(os.getpid(), signal.SIGKILL)
    flush(handle)

state.os.fsync = fsync
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("command", ["train", pytest.param("supernet", marks=pytest.mark.thorough)])
def test_a_run_that_was_killed_twice_ends_with_the_bits_of_one_that_was_not(tmp_path, capfd, command):
    data = write_digits(tmp_path / "data", 32, 16)
    write_space(tmp_path / "space.json")
    run = tmp_path / "killed"
    first = subprocess.run(
        [sys.executable, "-c", KILL_ITSELF, *arguments(data, run, command=command)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert first.returncode == -signal.SIGKILL, first.stderr
    kept = state.load(run / "last.pt")
    assert kept["epoch"] == 1
    with pytest.raises(TrainingError, match="is no checkpoint"):  # half of one, which is not in the way
        state.load(next(run.glob(".last.pt.*.part")))

    second = subprocess.Popen(
        [sys.executable, "-m", "effv2_kernels", *arguments(data, run, "--resume", command=command)],
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    began = (run / "last.pt").stat().st_mtime_ns
    deadline = time.monotonic() + 300
    while (run / "last.pt").stat().st_mtime_ns == began:
        assert second.poll() is None, second.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    second.kill()
    second.communicate()
    assert second.returncode == -signal.SIGKILL
    assert 2 <= state.load(run / "last.pt")["epoch"] < 4

    with one_torch_thread():
        assert main(arguments(data, run, "--resume", command=command)) == 0
        assert main(arguments(data, tmp_path / "whole", command=command)) == 0
    ends = [state.load(folder / "last.pt") for folder in (run, tmp_path / "whole")]
    assert [end["epoch"] for end in ends] == [4, 4]
    assert same(ends[0]["state_dict"], ends[1]["state_dict"])
    assert same(ends[0]["state_dict_ema"], ends[1]["state_dict_ema"])
    for name in ("best.safetensors", *(["supernet.safetensors"] if command == "supernet" else [])):
        assert (run / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert not list(run.glob(".*.part"))
    assert "going on behind epoch" in capfd.readouterr().out
