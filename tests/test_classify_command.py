"""The command `classify`: what it says is on a picture, and by which names."""

import commands
import pytest
import torch
from commands import SMALL, run

import effv2_kernels
from effv2_kernels import photo, shapes
from effv2_kernels.cli import labels
from effv2_kernels.errors import InputError

pytest.importorskip("PIL.Image")
pytest.importorskip("safetensors.torch")

picture, checkpoint = commands.picture, commands.checkpoint  # fixtures


def test_a_file_that_is_no_picture(capsys, tmp_path):
    path = tmp_path / "text.png"
    path.write_text("this is no picture")
    code, _, err = run(capsys, "classify", path, *SMALL)
    assert code == 2
    assert "not a picture" in err


def test_classify_says_that_the_weights_are_random(capsys, picture):
    code, out, _ = run(capsys, "classify", picture, "--top", 3, *SMALL)
    assert code == 0
    first, name, *classes = out.splitlines()
    assert "random" in first
    assert name == str(picture)
    assert len(classes) == 3


@pytest.mark.parametrize("saved", [False, True], ids=["checkpoint", "saved"])
def test_grey_pictures_of_a_network_for_grey_images(capsys, picture, tmp_path, saved):
    torch.manual_seed(5)
    model = effv2_kernels.create_model("efficientformerv2_s0", img_size=64, num_classes=12, in_channels=1)
    shapes.randomise(model)
    path = tmp_path / ("grey.effv2" if saved else "grey.pth")
    if saved:
        effv2_kernels.save(effv2_kernels.optimize(model), path)
    else:
        torch.save(model.state_dict(), path)
    # A saved network knows its channels.
    given = [] if saved else ["--num-classes", 12, "--in-channels", 1]
    code, out, err = run(capsys, "classify", picture, "--top", 1, "--checkpoint", path, *given, *SMALL)
    assert code == 0, err
    with torch.inference_mode():
        expected = model(photo.read(picture, (64, 64), 1))[0].softmax(0)
    assert out.splitlines()[1].split()[1] == str(int(expected.argmax()))


def test_pictures_have_one_or_three_channels(capsys, picture):
    code, _, err = run(capsys, "classify", picture, "--in-channels", 4, *SMALL)
    assert code == 2
    assert "1 or 3 channels, and the model takes images of 4" in err


def test_classify_prints_the_classes_of_the_checkpoint(capsys, picture, checkpoint, tmp_path):
    path, model = checkpoint
    names = [f"name-{i}" for i in range(12)]
    (tmp_path / "names.txt").write_text("\n".join(names))
    arguments = ["--checkpoint", path, "--num-classes", 12, "--labels", tmp_path / "names.txt", *SMALL]
    code, out, _ = run(capsys, "classify", picture, "--top", 4, *arguments)
    assert code == 0
    assert "random" not in out
    with torch.inference_mode():
        expected = model(photo.read(picture, (64, 64)))[0].softmax(0)
    values, indices = expected.topk(4)
    for line, value, index in zip(out.splitlines()[1:], values, indices, strict=True):
        share, number, name = line.split()
        assert float(share.rstrip("%")) == pytest.approx(float(value) * 100, abs=0.0051)
        assert int(number) == int(index)
        assert name == names[index]


def test_labels_must_be_one_per_class(capsys, picture, checkpoint, tmp_path):
    (tmp_path / "names.txt").write_text("one\ntwo\n")
    arguments = ["--checkpoint", checkpoint[0], "--num-classes", 12, "--labels", tmp_path / "names.txt"]
    code, _, err = run(capsys, "classify", picture, *arguments, *SMALL)
    assert code == 2
    assert "12 classes" in err
    assert "2 lines" in err


def test_a_saved_network_classifies_as_the_checkpoint_does(capsys, picture, checkpoint, tmp_path):
    path, _ = checkpoint
    arguments = ["--checkpoint", path, "--num-classes", 12, *SMALL]
    saved = tmp_path / "network.effv2"
    code, out, _ = run(capsys, "convert", saved, *arguments)
    assert code == 0
    assert "MB" in out
    assert saved.stat().st_size > 1e6
    _, from_checkpoint, _ = run(capsys, "classify", picture, *arguments)
    code, from_saved, _ = run(capsys, "classify", picture, "--checkpoint", saved, *SMALL)
    assert code == 0
    assert from_saved == from_checkpoint


@pytest.mark.parametrize("model", ["efficientformerv2_s0", "mobilenetv2_035"])
def test_features_are_no_classes(capsys, picture, tmp_path, model):
    saved = tmp_path / "features.effv2"
    describes = ["--model", model, "--num-classes", 0, *SMALL]
    code, _, err = run(capsys, "classify", picture, *describes)
    assert code == 2
    assert "--num-classes 0 makes a network without a classifier" in err
    assert run(capsys, "convert", saved, *describes)[0] == 0
    code, out, err = run(capsys, "classify", picture, "--checkpoint", saved)
    assert (code, out) == (2, "")
    assert f"{saved} is a network without a classifier, whose outputs are features and no classes" in err


def test_maps_are_no_classes(capsys, picture, tmp_path):
    model = effv2_kernels.create_model("efficientformerv2_s0", img_size=64, features_only=True)
    effv2_kernels.save(effv2_kernels.optimize(model), tmp_path / "maps.effv2")
    code, _, err = run(capsys, "classify", picture, "--checkpoint", tmp_path / "maps.effv2")
    assert code == 2
    assert "without a classifier" in err


def test_imagenet_names():
    names = labels.imagenet()
    if names is None:
        pytest.skip("timm is not installed")
    assert len(names) == 1000
    assert "tabby" in names[281]
    assert labels.choose(None, 1000) == names


def test_no_names_for_another_number_of_classes():
    assert labels.choose(None, 12) is None
    assert labels.describe(None, 7).strip() == "7"


def test_labels_as_windows_saves_them(tmp_path):
    path = tmp_path / "names.txt"
    path.write_bytes("\ufeffFuchs\r\nGrünfink\r\n".encode())
    assert labels.read(str(path)) == ["Fuchs", "Grünfink"]


def test_labels_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        labels.read(str(tmp_path / "none.txt"))
