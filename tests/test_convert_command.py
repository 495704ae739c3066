"""The command `convert`: where weights come from, what it writes, and over what."""

import os
import pickle
import zipfile

import commands
import pytest
import torch
from commands import SMALL, run

import effv2_kernels

pytest.importorskip("PIL.Image")
safetensors = pytest.importorskip("safetensors.torch")

picture, checkpoint = commands.picture, commands.checkpoint  # fixtures


@pytest.mark.parametrize("ways", ["as positions", "as an option", "options first"])
def test_convert_takes_the_checkpoint_first(capsys, checkpoint, tmp_path, ways):
    path, model = checkpoint
    output = tmp_path / "network.effv2"
    options = ["--num-classes", 12, "--dtype", "fp16", *SMALL]
    arguments = {
        "as positions": [path, output, *options],
        "as an option": [output, "--checkpoint", path, *options],
        "options first": [*options, path, output],
    }[ways]
    before = path.read_bytes()
    code, out, err = run(capsys, "convert", *arguments)
    assert code == 0, err
    assert "random" not in out
    assert path.read_bytes() == before
    fast = effv2_kernels.optimize(model, verify=False)
    loaded = effv2_kernels.load(output)
    weights = dict(fast.state_dict())
    for key, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, weights[key]) or torch.equal(tensor, weights[key].half().float()), key
    # A saved network may be written over.
    code, _, err = run(capsys, "convert", *arguments)
    assert code == 0, err


def test_convert_without_weights_says_so(capsys, tmp_path):
    code, out, _ = run(capsys, "convert", tmp_path / "network.effv2", *SMALL)
    assert code == 0
    assert "The weights are random: give a checkpoint before OUTPUT, or --pretrained" in out
    assert effv2_kernels.load(tmp_path / "network.effv2").network.names


def test_convert_takes_weights_once(capsys, checkpoint, tmp_path):
    path, _ = checkpoint
    output = tmp_path / "network.effv2"
    for other, shown in (
        (["--checkpoint", path], f"--checkpoint {path}"),
        (["--pretrained"], "--pretrained"),
    ):
        code, _, err = run(capsys, "convert", path, output, *other, *SMALL)
        assert code == 2
        assert f"error: the weights are given twice, as {path} and by {shown}: leave out one" in err
        assert not output.exists()


def _archive(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "notes")


# What is in the way of OUTPUT, and what a message says of it.
IN_THE_WAY = {
    "a checkpoint": (
        lambda path: torch.save({"a": torch.zeros(3)}, path),
        "is a file of torch.save, such as",
    ),
    "weights": (
        lambda path: safetensors.save_file({"a": torch.zeros(3)}, path),
        "is a safetensors file with something else in it",
    ),
    "text": (lambda path: path.write_text("some notes"), "is none"),
    "an archive": (_archive, "is a zip archive of notes.txt"),
    "nothing": (lambda path: path.touch(), "is empty"),
    "a pickle": (
        lambda path: path.write_bytes(pickle.dumps({"a": 1})),
        "is a pickle that torch.save did not",
    ),
    "an ONNX file": (
        lambda path: path.write_bytes(b"\x08\x07\x12\x04abcd"),
        "looks like an ONNX file, which",
    ),
}


@pytest.mark.parametrize("name", IN_THE_WAY)
@pytest.mark.parametrize("given", [False, True], ids=["random", "of a checkpoint"])
def test_convert_writes_over_nothing_else(capsys, checkpoint, tmp_path, name, given):
    make, words = IN_THE_WAY[name]
    output = tmp_path / "taken.pth"
    make(output)
    before = output.read_bytes()
    code, _, err = run(capsys, "convert", *([checkpoint[0]] if given else []), output, *SMALL)
    assert code == 2
    assert err.startswith(f"error: OUTPUT is {output}, which exists and {words}")
    assert "nothing but a saved network is written over. Give another name, or move it away" in err
    assert err.count("\n") == 1
    assert output.read_bytes() == before


def test_convert_writes_over_nothing_irregular(capsys, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for output, words in ((tmp_path, "is a directory"), (tmp_path / "pipe", "is no regular file")):
        code, _, err = run(capsys, "convert", output, *SMALL)
        assert code == 2
        assert f"which exists and {words}" in err


def test_convert_writes_to_where_a_link_leads(capsys, checkpoint, tmp_path):
    """Also to where nothing is yet."""
    path, _ = checkpoint
    target, link = tmp_path / "target.effv2", tmp_path / "link.effv2"
    link.symlink_to(target)
    sizes = []
    for dtype in ("fp32", "fp16"):
        code, _, _ = run(capsys, "convert", path, link, "--num-classes", 12, "--dtype", dtype, *SMALL)
        assert code == 0
        assert link.is_symlink()
        sizes.append(target.stat().st_size)
    assert 0 < sizes[1] < sizes[0]


def test_convert_does_not_write_over_what_it_reads(capsys, checkpoint, tmp_path):
    path, _ = checkpoint
    saved, link = tmp_path / "network.effv2", tmp_path / "link.effv2"
    assert run(capsys, "convert", path, saved, "--num-classes", 12, *SMALL)[0] == 0
    link.symlink_to(saved)
    for source, output in ((path, path), (saved, saved), (saved, link), (link, saved)):
        before = output.read_bytes()
        code, _, err = run(capsys, "convert", source, output, "--num-classes", 12, *SMALL)
        assert code == 2
        assert err.startswith(f"error: OUTPUT is {output}, the checkpoint itself: give another name")
        assert output.read_bytes() == before


def test_names_of_classes_go_into_the_file(capsys, picture, checkpoint, tmp_path):
    (tmp_path / "names.txt").write_text("\n".join(f"name-{i}" for i in range(12)))
    saved = tmp_path / "network.effv2"
    arguments = ["--checkpoint", checkpoint[0], "--num-classes", 12, *SMALL]
    code, _, _ = run(capsys, "convert", saved, *arguments, "--labels", tmp_path / "names.txt")
    assert code == 0
    _, out, _ = run(capsys, "classify", picture, "--checkpoint", saved, "--top", 3, *SMALL)
    for line in out.splitlines()[1:]:
        _, number, name = line.split()
        assert name == f"name-{number}"
    code, _, err = run(capsys, "convert", saved, *arguments, "--labels", "imagenet")
    assert code == 2
    assert "1000 for 12 classes" in err or "timm, which is not installed" in err
