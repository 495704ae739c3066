"""The command line, run in this process: what it prints, its exit codes, and its errors."""

import argparse
import json
import os
import pickle
import subprocess
import sys
import zipfile

import pytest
import torch

import effv2_kernels
from effv2_kernels import photo, shapes
from effv2_kernels.__main__ import main
from effv2_kernels.cli import labels, models, verify
from effv2_kernels.errors import InputError

Image = pytest.importorskip("PIL.Image")
safetensors = pytest.importorskip("safetensors.torch")

# The smallest image whose last stage still has more than one position.
SMALL = ["--img-size", "64"]


@pytest.fixture
def picture(tmp_path, generator):
    """A picture of noise that is neither square nor of the model's size."""
    pixels = torch.randint(256, (90, 130, 3), generator=generator, dtype=torch.uint8)
    path = tmp_path / "noise.png"
    Image.fromarray(pixels.numpy()).save(path)
    return path


@pytest.fixture
def checkpoint(tmp_path, generator):
    """(path, model) of a network with trained-like weights, whose logits differ from class to class."""
    torch.manual_seed(generator.initial_seed())
    model = effv2_kernels.create_model("efficientformerv2_s0", img_size=64, num_classes=12)
    shapes.randomise(model)
    path = tmp_path / "weights.pth"
    torch.save(model.state_dict(), path)
    return path, model


def options(*arguments):
    parser = argparse.ArgumentParser()
    models.add_arguments(parser)
    models.add_run_arguments(parser)
    return parser.parse_args(list(arguments))


def run(capsys, *arguments):
    """(exit code, standard output, standard error) of one command."""
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


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
