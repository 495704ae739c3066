"""The commands that compare: `bench` and the targets, what they refuse, and the files that they write."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from effv2_kernels import benchmarking
from effv2_kernels.__main__ import main
from effv2_kernels.benchmarking import (
    check_writable,
    read,
    targets,
    write,
)
from effv2_kernels.cli.bench import rivals
from effv2_kernels.errors import InputError, UnknownNameError


def test_named_rivals() -> None:
    assert rivals("none", 1) == []
    assert rivals("eager, openvino", 1) == ["eager", "openvino"]
    assert rivals("openvino", 16) == ["openvino", "openvino_streams"]
    assert "eager" in rivals("all", 1)
    assert "openvino_streams" not in rivals("all", 1)
    with pytest.raises(UnknownNameError, match="onnxruntime"):
        rivals("eager,onnxruntim", 1)


@pytest.mark.alone
def test_bench_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "found.json"
    options = ["--img-size", "64", "--batch", "2", "--threads", "1", "--seconds", "0.2"]
    assert main(["bench", *options, "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    (found,) = read(path)
    assert found.model == "efficientformerv2_s0"
    assert (found.batch, found.threads, found.image_size) == (2, 1, (64, 64))
    assert [e.name for e in found.entries] == ["effv2", "eager"]
    ratio = found.ratio("eager")
    assert ratio is not None
    assert f"{ratio:.2f}x" in printed
    assert {"p10", "p50", "p90", "p99"} <= set(printed.split())


@pytest.mark.parametrize(
    "options",
    [
        ["--rivals", "openvin"],
        ["--seconds", "0"],
        ["--seconds", "nan"],
        ["--seconds", "inf"],
        ["--batch", "0"],
        ["--threads", "0"],
        ["--json", "none/found.json"],
        ["--json", "."],
    ],
)
def test_bench_command_refuses(
    options: list[str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before anything is measured, which would be for nothing."""
    monkeypatch.chdir(tmp_path)
    if "--threads" not in options:
        monkeypatch.setattr(benchmarking, "compare", lambda *_, **__: pytest.fail("it began"))
    assert main(["bench", *options]) == 2
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seconds", "nan"], "but got nan"),
        (["--json", "none/found.json"], "'none/found.json' cannot be written: No such file"),
        (["--models", "s9"], "s9"),
    ],
)
def test_targets_refuse(
    options: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(targets, "measure", lambda *_: pytest.fail("it began"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        targets.main(options)
    assert message in capsys.readouterr().err


def test_what_cannot_be_written(tmp_path: Path) -> None:
    for check in (check_writable, lambda path: write(path, [])):
        with pytest.raises(InputError, match="cannot be written: No such file or directory"):
            check(tmp_path / "none" / "found.json")
    path = tmp_path / "found.json"
    check_writable(path)
    assert not path.exists()
    path.write_text("as it was")
    check_writable(path)
    assert path.read_text() == "as it was"
    (tmp_path / "link.json").symlink_to("target.json")
    check_writable(tmp_path / "link.json")
    assert (tmp_path / "link.json").is_symlink()
    assert not (tmp_path / "target.json").exists()
    os.mkfifo(tmp_path / "pipe")
    check_writable(tmp_path / "pipe")  # without waiting for who reads
