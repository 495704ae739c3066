"""bench/gpu/run_all.py as a command: processes that die or are killed, what it needs, and what it refuses."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from gpu_results import ENVIRONMENT

pytest.importorskip("triton")

from bench.gpu import run_all, worker
from bench.gpu.results import read

ROOT = Path(__file__).resolve().parent.parent


# A worker that does what its steps say instead of using a GPU: one step for each element of "script".
FAKE_WORKER = """
import json, os, signal, sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from bench.gpu import worker
from bench.gpu.results import Results

def main(arguments):
    wanted = json.loads(arguments[0])
    out = Path(wanted["out"])
    (out / "pid").write_text(str(os.getpid()))
    results = Results(out, {environment!r})
    results.data["wanted"] = {{"parity": ["right", "wrong", "crash", "lost", "sleep", "late"]}}
    for key, action in {script!r}:
        if key in results.data["parity"]:
            continue
        results.begin("parity", key)
        row = {{"what": key, "dtype": "fp16", "bound": 5e-3, "error": 1e-3, "failure": "", "ok": True}}
        if action == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if action == "sleep":
            time.sleep(60)
        if action in ("wrong", "lost"):
            row |= {{"error": None, "failure": "NaN", "ok": False}}
        results.add("parity", key, [row])
        if action == "lost":
            return worker.RESTART
        if action == "abort":
            os.abort()
    return {code}

worker.main = main
sys.exit(worker.live())
"""


@dataclass
class Command:
    """``run_all.main`` with a worker that follows a script."""

    folder: Path
    worker: Path

    def script(self, *steps, code=0):
        self.worker.write_text(
            FAKE_WORKER.format(
                root=str(ROOT), environment=ENVIRONMENT, script=[step.split(":") for step in steps], code=code
            )
        )

    def data(self):
        return read(self.folder / "gpu.json")

    def process_is_gone(self):
        pid = int((self.folder / "pid").read_text())
        for _ in range(100):
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                return True
            if Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":  # its new parent is slow
                return True
            time.sleep(0.05)
        return False


@pytest.fixture
def command(tmp_path, monkeypatch):
    made = Command(tmp_path / "out", tmp_path / "worker.py")
    monkeypatch.setattr(run_all, "WORKER", made.worker)
    before = signal.getsignal(signal.SIGTERM)
    yield made
    signal.signal(signal.SIGTERM, before)


def test_all_right(command, capsys):
    command.script("right:right")
    assert run_all.main(["--out", str(command.folder)]) == 0
    out = capsys.readouterr().out
    assert "parity: 1 of 1 comparisons within their bounds" in out
    assert f"written to {command.folder / 'gpu.json'}" in out
    assert "not done yet, parity: wrong, crash, lost, sleep, late" in out


def test_something_wrong(command, capsys):
    command.script("right:right", "wrong:wrong", "late:right")
    assert run_all.main(["--out", str(command.folder)]) == 1
    assert "WRONG wrong (wrong): NaN" in capsys.readouterr().out


def test_a_process_that_dies_costs_one_step(command, capsys):
    command.script("right:right", "crash:crash", "lost:lost", "late:right")
    assert run_all.main(["--out", str(command.folder)]) == 1
    found = {key: (rows[0]["ok"], rows[0]["failure"]) for key, rows in command.data()["parity"].items()}
    assert found == {
        "right": (True, ""),
        "crash": (False, "the process ended with SIGSEGV"),
        "lost": (False, "NaN"),
        "late": (True, ""),
    }


def test_a_process_that_dies_between_steps_is_followed_by_another(command, capsys):
    """As one may that frees memory on a GPU that is lost."""
    command.script("right:right", "wrong:abort", "late:right")
    assert run_all.main(["--out", str(command.folder)]) == 0
    assert list(command.data()["parity"]) == ["right", "wrong", "late"]


@pytest.mark.alone
def test_a_step_that_hangs_costs_itself(command, capsys, monkeypatch):
    monkeypatch.setattr(run_all, "_LIMITS", {"parity": 1.5})
    monkeypatch.setattr(run_all, "_GLANCE", 0.1)
    command.script("right:right", "sleep:sleep", "late:right")
    start = time.monotonic()
    assert run_all.main(["--out", str(command.folder)]) == 1
    assert time.monotonic() - start < 20
    found = {key: rows[0]["failure"] for key, rows in command.data()["parity"].items()}
    failure = "the process was ended after 1.5 s without any progress"
    assert found == {"right": "", "sleep": failure, "late": ""}


def test_a_process_that_hangs_before_its_first_step_is_not_started_again(command, capfd, monkeypatch):
    monkeypatch.setattr(run_all, "_BETWEEN", 0.5)
    monkeypatch.setattr(run_all, "_GLANCE", 0.1)
    command.worker.write_text("import time; time.sleep(60)")
    assert run_all.main(["--out", str(command.folder)]) == 1
    assert "was ended after 0.5 s without any progress before its first step" in capfd.readouterr().err


def test_a_process_that_dies_before_its_first_step_is_not_started_again(command, capfd):
    command.worker.write_text("import sys; sys.exit('no module named so')")
    assert run_all.main(["--out", str(command.folder)]) == 1
    error = capfd.readouterr().err
    assert error.count("no module named so") == 1
    assert "ended with exit code 1 before its first step" in error


@pytest.mark.alone
def test_the_time_is_kept(command, capsys, monkeypatch):
    monkeypatch.setattr(run_all, "_GRACE", 0.5)
    command.script("right:right", "sleep:sleep", "late:right")
    start = time.monotonic()
    assert run_all.main(["--out", str(command.folder), "--seconds", "3.5"]) == 0
    assert time.monotonic() - start < 5
    assert list(command.data()["parity"]) == ["right"]  # what was under way is open, not failed
    assert command.process_is_gone()
    assert "not done yet, parity: wrong, crash, lost, sleep, late" in capsys.readouterr().out
    command.worker.write_text("import sys; sys.exit(3)")  # nor does it fail because of the next call
    assert run_all.main(["--out", str(command.folder)]) == 1
    assert list(command.data()["parity"]) == ["right"]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_is_lost_and_nothing_left_running_when_it_is_killed(command, how, tmp_path):
    command.script("right:right", "sleep:sleep")
    # Who starts tests in the background of a shell has them ignore SIGINT, and with them what they start.
    code = f"""
        import signal
        import sys
        from pathlib import Path
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.path.insert(0, {str(ROOT)!r})
        from bench.gpu import run_all
        run_all.WORKER = Path({str(command.worker)!r})
        sys.exit(run_all.main(["--out", {str(command.folder)!r}]))
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True
    )
    for _ in range(1200):  # it ends sooner, on any machine that is not busy
        if (command.data() or {}).get("now") == ["parity", "sleep"]:
            break
        time.sleep(0.05)
    process.send_signal(how)
    out, _ = process.communicate(timeout=20)
    assert process.returncode == (-9 if how == signal.SIGKILL else 130)
    assert ("1 of 1 comparisons" in out) == (how != signal.SIGKILL)
    assert command.process_is_gone()
    assert list(command.data()["parity"]) == ["right"]
    command.script("right:wrong", "sleep:right")
    assert run_all.main(["--out", str(command.folder)]) == 0  # goes on behind what is known


def as_users(*arguments, **options):
    """The real command in a process of its own, without the tests' environment."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=environment | options.pop("env", {}),
        capture_output=True,
        text=True,
        timeout=120,
        **options,
    )


RUN_ALL = ROOT / "bench" / "gpu" / "run_all.py"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu(tmp_path):
    done = as_users(RUN_ALL, "--out", "here", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("nothing can be measured: ")
    assert "pytorch.org" in line or "nvidia-smi" in line
    assert list((tmp_path / "here").iterdir()) == []


def test_in_the_interpreter(tmp_path):
    done = as_users(RUN_ALL, "--out", tmp_path, env={"TRITON_INTERPRET": "1"})
    assert done.returncode == 2
    assert (
        done.stderr == "nothing can be measured: TRITON_INTERPRET=1 runs the kernels on the CPU; unset it.\n"
    )


REFUSED = {
    "nobody beside it": (["--beside", "0"], "expected a positive number, but got '0'"),
    "a part of one": (["--beside", "1.5"], "expected a positive number, but got '1.5'"),
    "model": (
        ["--models", "s0,s9"],
        "unknown model 's9'; known: s0, s1, s2, l, mobilenetv2_100, mobilenetv2_140",
    ),
    "no model": (
        ["--models", ""],
        "unknown model ''; known: s0, s1, s2, l, mobilenetv2_100, mobilenetv2_140",
    ),
    "batch": (["--batches", "1,-8"], "expected positive numbers of images such as 1,32, but got '1,-8'"),
    "no batch": (["--batches", "x"], "but got 'x'"),
    "seconds": (["--seconds", "-1"], "expected a number of seconds, but got '-1'"),
    "endless": (["--parity-seconds", "nan"], "expected a number of seconds, but got 'nan'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_options(name, tmp_path, capsys):
    options, message = REFUSED[name]
    with pytest.raises(SystemExit) as exit_:
        run_all.main(["--out", str(tmp_path / "out"), *options])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_no_place_for_the_results(tmp_path, capsys):
    file = tmp_path / "a file"
    file.write_text("mine")
    for out in (file, file / "below"):
        assert run_all.main(["--out", str(out)]) == 2
        assert f"--out {out} is no folder that can be written: " in capsys.readouterr().err
    assert file.read_text() == "mine"
    with pytest.raises(SystemExit):
        run_all.main([])
    assert "--out" in capsys.readouterr().err


def test_options_reach_the_worker():
    wanted, beside = run_all.parse(
        ["--out", "x", "--models", "L,s0", "--batches", "8,1,8", "--commit", "abc", "--no-compile"]
    )
    assert (wanted.variants, wanted.batches, wanted.commit, wanted.compile) == (
        ("l", "s0"),
        (8, 1),
        "abc",
        False,
    )
    assert wanted.seconds <= 360  # six minutes
    assert 1 <= beside <= 6
    assert wanted.shared is None
    assert (wanted.cpu, wanted.prepared, wanted.cuda) == (True, None, None)
    wanted, beside = run_all.parse(["--out", "x", "--no-cpu", "--beside", "9"])
    assert (wanted.cpu, beside) == (False, 9)


# Makes modules look as if they were not installed.
HIDE = """
import sys
HIDDEN = {hidden!r}

class Hiding:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        hidden = {{name, name.partition(".")[0]}} & HIDDEN
        return None if hidden else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
sys.path[:0] = [{root!r}, {root!r} + "/bench/gpu"]
"""
OPTIONAL = {"PIL", "huggingface_hub", "rich", "safetensors", "sklearn", "timm", "effv2_kernels._native"}

PARITY = """
import torch
torch.set_num_threads(1)
from effv2_kernels.shapes import head
from bench.gpu.parity import check_block, check_network
(row,) = check_block("a block", head(24, 10, 3, 2), "fp16", 2, torch.device("cpu"))
sys.path.insert(0, {tests!r})
from models import TINY
rows = list(check_network("tiny", TINY.build(torch.Generator()), "fp16", 1, (32, 32), torch.device("cpu")))
print(row.ok, [row.failure for row in rows], sorted(HIDDEN & set(sys.modules)))
"""

# Triton's interpreter needs NumPy; compiled kernels do not.
IMPORTS = """
import torch
from bench.gpu import kernels, models, parity, report, results, run_all, scaling, speed, timing, turns, worker
model = models.build("s0", (32, 32), torch.device("cpu"))
found = results.environment()
print(found["commit"], found["changed_files"], model(torch.zeros(1, 3, 32, 32)).shape[1])
print(worker.why_not() != "")
print(sorted(HIDDEN & set(sys.modules)))
"""


@pytest.mark.thorough
def test_it_needs_torch_and_triton_only(tmp_path):
    code = HIDE.format(hidden=OPTIONAL, root=str(ROOT)) + PARITY.format(tests=str(ROOT / "tests"))
    done = as_users("-c", code, env={"TRITON_INTERPRET": "1"}, cwd=tmp_path)
    assert done.stdout == "True ['', ''] []\n", done.stderr


def test_it_needs_neither_numpy_nor_git(tmp_path):
    code = HIDE.format(hidden={*OPTIONAL, "numpy"}, root=str(ROOT)) + IMPORTS
    done = as_users("-c", code, env={"PATH": str(tmp_path)}, cwd=tmp_path)
    assert done.stdout.splitlines() == ["unknown [] 1000", "True", "[]"], done.stderr


def test_a_checkout_without_git_and_without_the_compiled_module(tmp_path):
    """As a copied source tree runs: the package is found from the script's own place."""
    for folder in ("effv2_kernels", "bench"):
        shutil.copytree(
            ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("*.so", "__pycache__")
        )
    code = (
        "import sys, runpy; sys.path[:] = [path for path in sys.path if path != {root!r}]\n"
        "sys.argv = ['run_all.py', '--help']\n"
        "try: runpy.run_path({path!r}, run_name='__main__')\n"
        "except SystemExit: pass\n"
        "from bench.gpu import results\n"
        "import effv2_kernels; print(effv2_kernels.__file__, results.environment()['commit'])"
    ).format(root=str(ROOT), path=str(tmp_path / "bench" / "gpu" / "run_all.py"))
    done = as_users("-c", code, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == f"{tmp_path / 'effv2_kernels' / '__init__.py'} unknown", (
        done.stderr
    )


def test_the_worker_says_what_is_missing(monkeypatch, capsys, tmp_path):
    import triton.runtime

    from effv2_kernels import backends

    class NoCompiler:
        @property
        def active(self):
            raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable")

    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(backends, "can_run", lambda *args, **kwargs: backends.Answer(True, "a GPU", "sm_90"))
    monkeypatch.setattr(triton.runtime, "driver", NoCompiler())
    assert worker.main([json.dumps({"out": str(tmp_path)})]) == worker.UNAVAILABLE
    assert "Triton cannot start (RuntimeError: Failed to find C compiler" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
