"""The command line, run in this process: what it prints, its exit codes, and its errors."""

import argparse
import json
import os
import subprocess
import sys

import commands
import pytest
import torch
from commands import SMALL, run

import effv2_kernels
from effv2_kernels.__main__ import main
from effv2_kernels.cli import models, verify

pytest.importorskip("PIL.Image")
pytest.importorskip("safetensors.torch")

picture, checkpoint = commands.picture, commands.checkpoint  # fixtures


def options(*arguments):
    parser = argparse.ArgumentParser()
    models.add_arguments(parser)
    models.add_run_arguments(parser)
    return parser.parse_args(list(arguments))


def test_version_in_a_process_of_its_own():
    command = [sys.executable, "-m", "effv2_kernels", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == f"effv2_kernels {effv2_kernels.__version__}"


def test_a_reader_that_leaves_early_is_no_error():
    command = f"{sys.executable} -m effv2_kernels env | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
    assert done.stdout == "effv2_kernels\n"
    assert done.stderr == ""


@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            "env > /dev/full",
            "cannot write to standard output (No space left on device): make room, or send it",
        ),
        ("env 0</dev/null 1<&0", "cannot write to standard output (Bad file descriptor)"),
        ("env >&-", "standard output is closed: send it to a file, or to /dev/null."),
    ],
)
def test_output_that_cannot_be_written(buffered, words, said):
    environment = {**os.environ, "PYTHONUNBUFFERED": "" if buffered else "1"}
    command = f"{sys.executable} -m effv2_kernels {words}"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {said}")
    assert done.stderr.count("\n") == 1


def test_help_that_cannot_be_written():
    environment = {**os.environ, "PYTHONUNBUFFERED": ""}
    command = f"{sys.executable} -m effv2_kernels --help > /dev/full"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 2
    assert done.stderr.startswith("error: cannot write to standard output")
    assert done.stderr.count("\n") == 1


def test_errors_of_files_are_not_taken_for_those_of_the_output(monkeypatch):
    from effv2_kernels.cli import env

    def fails(args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(env, "run", fails)
    with pytest.raises(OSError, match="No space left"):
        main(["env"])


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE"])
@pytest.mark.parametrize("value", ["", "silver"])
def test_variables_of_torchrun_that_somebody_else_set(capsys, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert run(capsys, "env")[0] == 0
    code, _, said = run(capsys, "search", "--supernet", "none.st", "--data", "none.st", "--output", "none")
    assert code == 2
    assert said.startswith("error: ")


def test_without_stderr_a_command_runs():
    command = f"{sys.executable} -m effv2_kernels env 2>&-"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert done.stdout.startswith("effv2_kernels\n")


def test_an_unknown_command_is_refused_with_the_known_ones(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["clasify"])
    assert stopped.value.code == 2
    assert "classify" in capsys.readouterr().err


def test_env(capsys):
    code, out, _ = run(capsys, "env", "--json")
    assert code == 0
    report = json.loads(out)
    assert report["effv2_kernels"]["version"] == effv2_kernels.__version__
    code, out, _ = run(capsys, "env")
    assert code == 0
    assert report["cpu"]["model"] in out
    assert report["cpu"]["isa chosen"] in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["explain", "--model", "efficientformerv2_s9"], ["efficientformerv2_s9", "efficientformerv2_s0"]),
        (["classify", "no-such-file.png"], ["no-such-file.png"]),
        (["explain", "--checkpoint", "no-such-file.pth"], ["no-such-file.pth"]),
        (["explain", "--isa", "avx1024", *SMALL], ["avx1024", "scalar"]),
        (["classify", "no-such-file.png", "--top", "0"], ["--top must be at least 1, but got 0"]),
        (["classify", "no-such-file.png", "--top", "-5"], ["--top must be at least 1, but got -5"]),
        (["verify", "--count", "0", *SMALL], ["at least one image"]),
        (["verify", "--checkpoint", "s0.effv2", *SMALL], ["s0.effv2", ".pth"]),
        (["profile", "--batch", "0", *SMALL], ["at least one image"]),
        (["profile", "--threads", str(2**31), *SMALL], ["threads must be", "2147483647"]),
        (["bench", "--threads", str(2**31), *SMALL], ["threads must be", "2147483647"]),
        (["bench", "--threads", "0", *SMALL], ["threads must be", "but got 0"]),
    ],
)
def test_errors_are_one_line_on_stderr_and_exit_code_2(capsys, arguments, words):
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    for word in words:
        assert word in err


@pytest.fixture
def saved(checkpoint, tmp_path):
    """The network of the checkpoint, for images of 49 to 64 pixels a side."""
    path = tmp_path / "saved.effv2"
    effv2_kernels.save(effv2_kernels.optimize(checkpoint[1]), path)
    return path


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        (["--model", "efficientformerv2_l"], "--model"),
        (["--model", "efficientformerv2_s0"], "--model"),  # the default's
        (["--architecture", "no-such.json"], "--architecture"),
        (["--num-classes", 12], "--num-classes"),
        (["--in-channels", 3, "--num-classes", 12], "--num-classes and --in-channels"),
    ],
)
@pytest.mark.parametrize("command", ["classify", "explain", "profile", "convert"])
def test_a_saved_network_is_described_by_no_option(capsys, picture, saved, tmp_path, command, options, shown):
    given = ["--checkpoint", saved]
    if command in ("classify", "convert"):
        given.append(picture if command == "classify" else tmp_path / "again.effv2")
    code, _, err = run(capsys, command, *given, *options)
    assert code == 2
    assert err == (
        f"error: {saved} is an optimised network, which says itself what it is: leave out {shown}, or give "
        f"the checkpoint that it was made of.\n"
    )
    assert not (tmp_path / "again.effv2").exists()
    code, out, err = run(capsys, command, *given)
    assert code == 0, err
    if command in ("explain", "profile"):  # its own size is not the option's
        assert "3x64x64" in out


@pytest.mark.parametrize("command", ["classify", "explain", "profile"])
def test_a_saved_network_for_images_of_another_size(capsys, picture, saved, tmp_path, command):
    words = [command, *([picture] if command == "classify" else [])]
    code, _, err = run(capsys, *words, "--checkpoint", saved, "--img-size", 224)
    assert code == 2
    assert "fit inputs of 49-64 rows by 49-64 columns, but this one is 224x224" in err
    any_size = tmp_path / "any.effv2"
    assert run(capsys, "convert", any_size, "--model", "mobilenetv2_035")[0] == 0
    code, out, err = run(capsys, *words, "--checkpoint", any_size, "--img-size", "64x96")
    assert code == 0, err
    assert command == "classify" or "3x64x96" in out


def test_a_saved_network_for_grey_images_is_timed_on_such(capsys, tmp_path):
    saved = tmp_path / "grey.effv2"
    assert run(capsys, "convert", saved, "--in-channels", 1, *SMALL)[0] == 0
    code, out, err = run(capsys, "profile", "--checkpoint", saved)
    assert code == 0, err
    assert "1x64x64" in out


def test_explain_lists_every_kind_of_block(capsys):
    code, out, _ = run(capsys, "explain", *SMALL)
    assert code == 0
    for kind in ("stem", "ffn", "attention", "conv", "attention_downsample", "head"):
        assert kind in out


@pytest.mark.parametrize("command", ["explain", "profile"])
def test_a_model_for_images_of_any_size(command, capsys):
    """It has no size of its own: what is shown is that of --img-size."""
    code, out, _ = run(capsys, command, "--model", "mobilenetv2_035", "--img-size", "64x96")
    assert code == 0
    assert "features.17" in out
    assert "3x64x96" in out


def test_profile_lists_every_kind_of_block(capsys):
    code, out, _ = run(capsys, "profile", "--batch", 2, "--threads", 1, *SMALL)
    assert code == 0
    for kind in ("stem", "ffn", "attention", "conv", "attention_downsample", "head"):
        assert kind in out


def test_verify_on_every_isa(capsys):
    code, out, _ = run(capsys, "verify", "--all-isas", "--count", 2, *SMALL)
    assert code == 0, out
    assert "scalar" in out
    assert "within the bound" in out


def test_verify_takes_many_images_a_few_at_a_time(capsys, monkeypatch):
    """Maps of all of them in float64 would take all memory."""
    monkeypatch.setattr(verify, "_AT_ONCE", 2)
    sizes = []
    images = torch.arange(5.0)
    assert torch.equal(verify._in_parts(lambda part: sizes.append(len(part)) or part + 1, images), images + 1)
    assert sizes == [2, 2, 1]
    code, out, _ = run(capsys, "verify", "--count", 5, *SMALL)
    assert code == 0
    assert out.count("5 of 5") == 2


def test_verify_fails_over_the_bound(capsys, monkeypatch, picture):
    monkeypatch.setattr(verify, "BOUND", 1e-12)
    code, out, _ = run(capsys, "verify", picture, *SMALL)
    assert code == 1
    assert "over the bound" in out
    assert out.splitlines()[-1] == "FAILED"


def test_difference_finds_the_worst_element():
    expected = torch.tensor([[3.0, 0.0, 4.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    actual = expected.float()
    actual[1, 2] = 0.5
    found = verify.Difference.of(actual, expected)
    assert found.relative_l2 == pytest.approx(0.5 / 5)
    assert (found.worst, found.position, found.actual, found.expected) == (0.5, (1, 2), 0.5, 0.0)
    assert (found.same_top1, found.images) == (1, 2)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_difference_that_is_not_finite_is_never_within(value):
    expected = torch.ones(1, 4, dtype=torch.float64)
    actual = expected.float()
    actual[0, 2] = value
    found = verify.Difference.of(actual, expected)
    assert found.position == (0, 2)
    assert not found.within(1e9)


@pytest.mark.parametrize(
    ("text", "size"), [("224", (224, 224)), ("160x224", (160, 224)), ("96X64", (96, 64))]
)
def test_image_sizes(text, size):
    assert options("--img-size", text).img_size == size


@pytest.mark.parametrize("text", ["", "x", "0", "-3", "2x3x4", "large"])
def test_bad_image_sizes(text, capsys):
    with pytest.raises(SystemExit):
        options(f"--img-size={text}")
    assert "expected 224 or ROWSxCOLUMNS" in capsys.readouterr().err


def test_random_weights_hide_no_block():
    """Every block must matter to the logits, or `verify` on random weights would prove little."""
    args = options(*SMALL)
    model = models.build(args)
    images = models.random_images(args, 1)
    with torch.inference_mode():
        before = model(images)
        for name, block in model.named_modules():
            if name.endswith("ls2") and "blocks" in name:
                gamma = block.gamma.clone()
                block.gamma.mul_(1.01)
                assert float((model(images) - before).norm() / before.norm()) > 1e-5, name
                block.gamma.copy_(gamma)


def test_demo(capsys):
    pytest.importorskip("sklearn")
    pytest.importorskip("rich")
    code, out, _ = run(capsys, "demo", "--seconds", 0, *SMALL)
    assert code == 0
    assert "random" in out
    assert out.count("times as fast") == 2
    assert "Handwritten digits" in out
    assert "china.jpg" in out


@pytest.mark.parametrize("seconds", ["nan", "inf"])
def test_a_demo_that_would_never_end(capsys, seconds):
    pytest.importorskip("sklearn")
    pytest.importorskip("rich")
    code, _, said = run(capsys, "demo", "--seconds", seconds, *SMALL)
    assert code == 2
    assert f"must be a finite number, at least 0, but got {seconds}" in said


def test_demo_with_a_checkpoint(capsys, checkpoint, picture):
    pytest.importorskip("sklearn")
    pytest.importorskip("rich")
    arguments = ["--checkpoint", checkpoint[0], "--num-classes", 12, "--image", picture, *SMALL]
    code, out, _ = run(capsys, "demo", "--seconds", 0, *arguments)
    assert code == 0
    assert "random" not in out
    assert picture.name in out
