"""People hand over weight files under any name, cut off, wrapped, or of another kind altogether.

A file is told by its contents: what can be read safely is read, and for the rest the message says what the
file is and what to do; nothing in a file is executed.
"""

import gzip
import io
import pickle
import re
import tarfile
import zipfile

import pytest
import torch
from models import TINY
from torch import nn

import effv2_kernels
from effv2_kernels.__main__ import main
from effv2_kernels.errors import CheckpointError
from effv2_kernels.families.efficientformer_v2 import weights as checkpoint
from effv2_kernels.reference import VARIANTS

S0 = "efficientformerv2_s0"


@pytest.fixture(scope="module")
def model():
    return TINY.build(torch.Generator().manual_seed(11))


@pytest.fixture
def state(model):
    return model.state_dict()


def same(actual, expected):
    return actual.keys() == expected.keys() and all(
        torch.equal(actual[key], expected[key]) for key in expected
    )


def save_safetensors(state, path):
    pytest.importorskip("safetensors.torch").save_file(state, path)


def save_legacy(state, path):
    torch.save(state, path, _use_new_zipfile_serialization=False)


@pytest.mark.situation(
    "load a weight file under another suffix, or PyTorch's old format",
    "works: files are told by their contents",
)
@pytest.mark.parametrize(
    "name", ["weights.pth", "pytorch_model.bin", "w.safetensors", "w.ckpt", "last.pth.tar", "w"]
)
@pytest.mark.parametrize(
    "save", [save_safetensors, torch.save, save_legacy], ids=["safetensors", "zip", "legacy"]
)
def test_the_suffix_does_not_matter(save, name, state, tmp_path):
    save(state, tmp_path / name)
    assert same(checkpoint.read(tmp_path / name).tensors, state)


def refusal(path, *words):
    with pytest.raises(CheckpointError) as caught:
        checkpoint.read(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    for word in words:
        assert word in message, message
    return message


def follow(message, path):
    """Run the code that a message gives, in Python words, and read the file that it writes."""
    code = re.search(r"(?:w = torch.load|torch\.save)\(.*'weights\.pth'\)", message)[0]
    code = code.replace("'weights.pth'", repr(str(path.with_name("weights.pth"))))
    exec(code, {"torch": torch, "path": path})
    return checkpoint.read(path.with_name("weights.pth")).tensors


@pytest.mark.situation(
    "load a TorchScript archive or a program of `torch.export` as a checkpoint",
    "refused: save its state dict, by the line in the message",
)
@pytest.mark.parametrize("name", ["traced.pt", "traced.safetensors"])
def test_torchscript(name, model, state, tmp_path):
    with torch.no_grad():
        torch.jit.trace(model, torch.zeros(1, 3, 32, 32)).save(tmp_path / name)
    message = refusal(tmp_path / name, "is a TorchScript archive")
    assert "truncated" not in message
    assert same(follow(message, tmp_path / name), state)


def test_exported_program(model, state, tmp_path):
    torch.export.save(torch.export.export(model, (torch.zeros(1, 3, 32, 32),)), tmp_path / "exported.pt2")
    message = refusal(tmp_path / "exported.pt2", "is a program of torch.export")
    assert same(follow(message, tmp_path / "exported.pt2"), state)


def test_exported_program_of_older_versions(tmp_path):
    with zipfile.ZipFile(tmp_path / "exported.pt2", "w") as archive:
        archive.writestr("serialized_exported_program.json", "{}")
        archive.writestr("serialized_state_dict.pt", b"")
    refusal(tmp_path / "exported.pt2", "is a program of torch.export")


@pytest.mark.situation(
    "load a checkpoint that holds whole modules, as YOLO-style trainers save",
    "refused: save its state dict, by the line in the message",
)
@pytest.mark.parametrize(
    "build",
    [
        lambda m: m,
        lambda m: {"model": None, "ema": m, "updates": 3},
        lambda m: {"model": m, "epoch": 3},
        lambda m: {"state_dict": m.state_dict(), "state_dict_ema": m.state_dict(), "extra": nn.Identity()},
        lambda m: {"state_dict": m.state_dict(), "ema_state_dict": {}, "message_hub": nn.Identity()},
    ],
    ids=["module", "yolo", "model", "timm", "mmengine"],
)
def test_modules_are_never_unpickled(build, model, state, tmp_path):
    path = tmp_path / "whole.pt"
    torch.save(build(model), path)
    message = refusal(path, "holds Python objects besides tensors", "never loaded")
    if hasattr(torch.serialization, "get_unsafe_globals_in_checkpoint"):
        assert "efficientformer_v2.model.EfficientFormerV2" in message or "linear.Identity" in message
    assert same(follow(message, path), state)


def test_a_state_dict_beside_an_average_is_not_the_one_advised(model, tmp_path):
    content = {"state_dict": model.state_dict(), "state_dict_ema": model.state_dict(), "extra": nn.Identity()}
    torch.save(content, tmp_path / "w.pth")
    refusal(tmp_path / "w.pth", "w['state_dict_ema']")
    content = {"state_dict": model.state_dict(), "ema_state_dict": {}, "message_hub": nn.Identity()}
    torch.save(content, tmp_path / "w.pth")
    refusal(tmp_path / "w.pth", "w['state_dict']")


def lfs_pointer(path):
    path.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 14283600\n")


def web_page(path):
    path.write_text("\n<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>\n")


def bare_html(path):
    path.write_text("<html><body>404</body></html>")


def answer(path):
    path.write_text('{"error": "Repository not found"}\n')


def empty(path):
    path.touch()


def zeros(path):
    path.write_bytes(bytes(5000))


def noise(path):
    path.write_bytes(b"\xfe\xed\xfa\xce" * 300)


def onnx(path):
    # ir_version 8, producer_name "pytorch", producer_version, and the start of the graph.
    path.write_bytes(b"\x08\x08\x12\x07pytorch\x1a\x052.4.0:\x90\x80\x01" + bytes(range(200)))


def zipped(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/weights.pth", b"x")


def arrays(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("stem.npy", b"x")


def compiled(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data/aotinductor/model/model.so", b"x")


def gzipped(path):
    inside = io.BytesIO()
    torch.save({"a": torch.ones(3)}, inside)
    path.write_bytes(gzip.compress(inside.getvalue()))


def tarred(path):
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("weights.pth"), io.BytesIO())


def hdf5(path):
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))


def plain_pickle(path):
    path.write_bytes(pickle.dumps({"a": 1}))


def half_zip(path):
    torch.save({"a": torch.ones(3000)}, path)
    path.write_bytes(path.read_bytes()[:4000])


def half_safetensors(path):
    save_safetensors({"a": torch.ones(3000)}, path)
    path.write_bytes(path.read_bytes()[:4000])


def half_legacy(path):
    save_legacy({"a": torch.ones(3000)}, path)
    path.write_bytes(path.read_bytes()[:4000])


FOREIGN = {
    lfs_pointer: ["Git LFS pointer", "git lfs pull"],
    web_page: ["truncated or not a checkpoint", "web page", "login"],
    bare_html: ["web page"],
    answer: ["truncated or not a checkpoint", "text that begins", "Repository not found"],
    empty: ["truncated or not a checkpoint", "empty"],
    zeros: ["truncated or not a checkpoint", "zeros"],
    noise: ["truncated or not a checkpoint", "fe ed fa ce"],
    onnx: ["ONNX"],
    zipped: ["zip archive of model/weights.pth", "unpack"],
    arrays: ["NumPy"],
    compiled: ["AOTInductor"],
    gzipped: ["gzip", "unpack"],
    tarred: ["tar archive", "unpack"],
    hdf5: ["HDF5"],
    plain_pickle: ["pickle that torch.save did not write", "never loaded"],
    half_zip: ["truncated", "fetch it again"],
    half_safetensors: ["truncated", "fetch it again"],
    half_legacy: ["truncated", "fetch it again"],
}


@pytest.mark.situation(
    "give a web page, a Git LFS pointer, an archive, an ONNX file or a cut-off download as a checkpoint",
    "refused: the message says what the file is and what to do",
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("write", FOREIGN, ids=lambda write: write.__name__)
def test_foreign_files_are_named(write, suffix, tmp_path):
    path = tmp_path / f"weights{suffix}"
    write(path)
    message = refusal(path, *FOREIGN[write])
    assert message.endswith(".")


def test_a_directory_names_the_files_in_it(state, tmp_path):
    torch.save(state, tmp_path / "pytorch_model.bin")
    refusal(tmp_path, "is not a file", "directory", "pytorch_model.bin")


@pytest.mark.situation(
    "give a file of `effv2_kernels.save` as a checkpoint", "refused: `effv2_kernels.load` reads it"
)
def test_a_saved_network_is_no_checkpoint(model, tmp_path):
    pytest.importorskip("safetensors.torch")
    for name in ("network.effv2", "network.safetensors", "network.pth"):
        effv2_kernels.save(effv2_kernels.optimize(model), tmp_path / name)
        refusal(tmp_path / name, "effv2_kernels.save() wrote", "effv2_kernels.load(path) reads it")


def test_the_command_line_tells_a_saved_network_by_its_contents(model, state, tmp_path, monkeypatch, capsys):
    pytest.importorskip("safetensors.torch")
    monkeypatch.setitem(VARIANTS, S0, TINY.architecture)
    options = ["--num-classes", "10", "--img-size", "32", "--checkpoint"]
    network, weights = tmp_path / "network.safetensors", tmp_path / "weights.effv2"
    effv2_kernels.save(effv2_kernels.optimize(model), network)
    torch.save(state, weights)
    assert main(["explain", *options[2:], str(network)]) == 0  # which says itself how many classes it has
    assert main(["explain", *options, str(weights)]) == 0
    capsys.readouterr()
    assert main(["explain", *options, str(network)]) == 2
    assert "leave out --num-classes" in capsys.readouterr().err
    assert main(["verify", *options, str(weights), "--count", "1"]) == 0
    assert main(["verify", *options, str(network)]) == 2
    assert "is an optimised network" in capsys.readouterr().err
