"""The commands train and evaluate, and the help and errors that users of them see."""

import argparse
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from checks import one_torch_thread

pytest.importorskip("timm")

from training import ARCHITECTURE, arguments, write_digits

import effv2_kernels
from effv2_kernels import create_model, shapes
from effv2_kernels.__main__ import main
from effv2_kernels.cli import evaluate, train
from effv2_kernels.errors import UnavailableError
from effv2_kernels.search import found
from effv2_kernels.train import PRESETS, Recipe, open_data, packages, state

S0 = "efficientformerv2_s0"


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp("digits"), 32, 16)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """S0 for 10 classes and images of 32, with weights whose decisions differ from image to image."""
    torch.manual_seed(4)
    model = create_model(S0, img_size=32, num_classes=10)
    shapes.randomise(model)
    path = tmp_path_factory.mktemp("weights") / "s0.pth"
    torch.save(model.state_dict(), path)
    return path


def run(capsys, *words):
    with one_torch_thread():
        code = main([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_train_with_a_teacher_then_evaluate(capsys, tmp_path, digits, weights):
    folder = tmp_path / "run"
    teacher = ("--teacher", S0, "--teacher-checkpoint", weights)
    code, out, err = run(capsys, *arguments(digits, folder, *teacher, "--epochs", 2, "--workers", 0))
    assert code == 0, err
    assert "32 images of 10 classes, 16 to evaluate on; beginning, 2 epochs in all" in out
    assert "auto_augment" not in out
    assert re.search(r"^epoch 2: lr .*target_loss .*teacher_loss .*top1", out, re.MULTILINE)
    assert {file.name.partition(".tfevents")[0] for file in folder.iterdir()} == {
        *("last.pt", "best.safetensors", "log.csv", "plot.png", "recipe.json", "events.out", ".lock")
    }
    told = json.loads((folder / "recipe.json").read_text())
    assert told["recipe"] == {**Recipe().as_dict(), **told["recipe"]}
    assert (told["recipe"]["teacher"], told["recipe"]["epochs"], told["classes"]) == (S0, 2, 10)
    assert told["recipe"]["drop_path"] == 0.2

    # The command that it prints, as it is printed.
    printed = next(line for line in out.splitlines() if "effv2_kernels evaluate" in line)
    words = printed.split("-m effv2_kernels ")[1].split()
    code, out, _ = run(capsys, *words, "--workers", 0)
    assert code == 0
    plain, optimised = (
        re.search(rf"^{name} +([\d.]+)% +([\d.]+)%$", out, re.MULTILINE) for name in ("plain", "optimised")
    )
    assert plain.groups() == optimised.groups()
    best = state.load(folder / "last.pt")["best"]
    assert float(plain[1]) == pytest.approx(100 * best, abs=0.005)
    assert "the same class for each of 16 images" in out


def test_a_network_of_other_sizes_with_a_teacher_of_others(capsys, tmp_path, digits):
    """What a search ends with: trained, gone on with, evaluated and saved by what its files say."""
    architecture, file = tmp_path / "architecture.json", tmp_path / "s.effv2"
    ARCHITECTURE.save(architecture)
    larger = replace(ARCHITECTURE, widths=(8, 8, 24, 24))
    larger.save(tmp_path / "larger.json")
    torch.manual_seed(5)
    teacher = create_model(architecture=larger, num_classes=10, img_size=32, in_channels=1)
    shapes.randomise(teacher)
    torch.save(teacher.state_dict(), tmp_path / "teacher.pth")
    more = ("--architecture", architecture, "--in-channels", 1, "--epochs", 2, "--workers", 0)
    more += ("--teacher", tmp_path / "larger.json", "--teacher-checkpoint", tmp_path / "teacher.pth")
    command = arguments(digits, tmp_path / "run", *more)
    code, out, err = run(capsys, *command)
    assert code == 0, err
    assert f"{architecture}, 32 images of 10 classes" in out
    assert "auto_augment is not used: its policies are of coloured pictures" in out
    assert "teacher_loss" in out
    told = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert told["architecture"] == json.loads(ARCHITECTURE.canonical().to_json())
    assert "model" not in told
    printed = next(line for line in out.splitlines() if "effv2_kernels evaluate" in line)
    words = printed.split("-m effv2_kernels ")[1].split()
    assert {"--architecture", "--in-channels"} <= set(words)
    code, out, _ = run(capsys, *words, "--workers", 0)
    assert code == 0
    assert "the same class for each of 16 images" in out
    options = ("--architecture", architecture, "--num-classes", 10, "--img-size", 32, "--in-channels", 1)
    best = tmp_path / "run" / "best.safetensors"
    assert run(capsys, "convert", best, file, *options)[0] == 0
    assert effv2_kernels.load(file)(torch.zeros(1, 1, 32, 32)).shape == (1, 10)
    for name in ("verify", "explain"):
        assert run(capsys, name, "--checkpoint", best, *options)[0] == 0
    # Of its teacher a run knows the weights, whatever their file is called.
    (tmp_path / "teacher.pth").rename(tmp_path / "renamed.pth")
    renamed = ("--resume", "--teacher-checkpoint", tmp_path / "renamed.pth")
    code, out, err = run(capsys, *command, *renamed)
    assert code == 0, err
    assert "going on behind epoch 2" in out
    shapes.randomise(teacher)
    torch.save(teacher.state_dict(), tmp_path / "renamed.pth")
    code, _, err = run(capsys, *command, *renamed)
    assert code == 2
    assert 'of another run: teacher_weights "' in err
    # The same file of other sizes is another run.
    larger.save(architecture)
    code, _, err = run(capsys, *command, *renamed)
    assert code == 2
    assert "of another run: architecture {" in err
    with pytest.raises(SystemExit):
        run(capsys, *command, "--model", "efficientformerv2_s1")
    assert "not allowed with argument" in capsys.readouterr().err


def test_the_command_that_a_search_ends_with(capsys, tmp_path, digits):
    """As it is printed, of images that no published teacher takes, in a folder with spaces."""
    folder = tmp_path / "what was found"
    folder.mkdir()
    torch.manual_seed(6)
    model = create_model(architecture=ARCHITECTURE, num_classes=10, img_size=32, in_channels=1)
    found.write_network(folder, model)
    source = found.Source(str(digits), "", 0.875, "bilinear", len(open_data(digits).train))
    words = command_of(found._how_to_go_on(folder, model, source))
    more = ("--epochs", 1, "--workers", 0, "--device", "cpu", "--set", "amp=none")
    code, out, err = run(capsys, *words, *more)
    assert code == 0, err
    recipe = json.loads((folder / "fine-tuned" / "recipe.json").read_text())["recipe"]
    assert (recipe["crop"], recipe["interpolation"]) == (0.875, "bilinear")
    assert (folder / "fine-tuned" / "best.safetensors").exists()
    code, out, err = run(capsys, *command_of(out), "--workers", 0)
    assert code == 0, err
    assert "the same class for each of 16 images" in out


@pytest.mark.parametrize(
    ("channels", "classes", "published"), [(3, 1000, True), (1, 1000, False), (3, 10, False)]
)
def test_a_published_teacher_is_named_where_it_fits(channels, classes, published):
    model = create_model(architecture=ARCHITECTURE, num_classes=classes, img_size=32, in_channels=channels)
    words = command_of(found._how_to_go_on(Path("f"), model))
    assert ("--teacher" in words) == published


def test_the_command_says_where_the_images_are():
    model = create_model(architecture=ARCHITECTURE, num_classes=10, img_size=32, in_channels=1)

    def words_of(*source):
        words = command_of(found._how_to_go_on(Path("f"), model, found.Source(*source)))
        return list(itertools.pairwise(words))

    many = words_of("my data", "torch/fashion_mnist", 0.95, "bicubic", 60_000)
    for pair in (
        ("--data", "my data"),
        ("--dataset", "torch/fashion_mnist"),
        ("--num-classes", "10"),
        ("--in-channels", "1"),
    ):
        assert pair in many
    assert not {"--batch", "--set"} & {first for first, _ in many}
    # Few images do not fill a batch of the recipe.
    for count, batch in ((1023, "128"), (960, "128"), (24, "4"), (3, "2")):
        assert ("--batch", batch) in words_of("d", "", 0.95, "bicubic", count)
    assert "--data DATA " in found._how_to_go_on(Path("f"), model)


def command_of(text):
    """The words of the first command that a text gives, behind the name of the package."""
    return shlex.split(text.replace("\\\n", "").split("-m effv2_kernels ")[1].partition("\n")[0])


def test_evaluate_fails_where_an_image_is_classed_otherwise(capsys, digits, weights, monkeypatch):
    real = effv2_kernels.optimize

    class Wrong(torch.nn.Module):
        def __init__(self, fast):
            super().__init__()
            self.fast, self.seen = fast, 0

        def forward(self, x):
            logits = self.fast(x).clone()
            for i in range(len(x)):
                if self.seen + i in (5, 11):
                    logits[i] = -logits[i]
            self.seen += len(x)
            return logits

    monkeypatch.setattr(effv2_kernels, "optimize", lambda model, **options: Wrong(real(model, **options)))
    options = ("--img-size", 32, "--workers", 0, "--batch", 4)
    command = ("evaluate", "--data", digits, "--checkpoint", weights, *options)
    code, out, _ = run(capsys, *command)
    assert code == 1
    assert "DIFFERENT for 2 of 16 images:" in out
    data = effv2_kernels.train.open_data(digits)
    for i in (5, 11):
        assert re.search(
            rf"{re.escape(data.validation.name(i))}: class \d plain, \d optimised; the first is", out
        )
    monkeypatch.setattr(effv2_kernels, "optimize", real)
    code, out, _ = run(capsys, *command)
    assert (code, out.count("the same class for each of 16 images")) == (0, 1)


def test_finetuning_from_other_classes(capsys, tmp_path, digits):
    """Only the classifiers are new; without the option it is refused, and says what to give."""
    torch.manual_seed(6)
    model = create_model(S0, img_size=32, num_classes=7)
    path = tmp_path / "seven.pth"
    torch.save(model.state_dict(), path)
    options = (*arguments(digits, tmp_path / "run", "--recipe", "finetune", "--checkpoint", path),)
    code, _, err = run(capsys, *options)
    assert code == 2
    assert f"'{path}': it has 7 classes, and the data has 10: give --checkpoint-classes 7" in err
    args = parsed(*options, "--checkpoint-classes", 7)
    made = train._model(args, train._recipe(args), 10, None)
    assert made.head.out_features == made.head_dist.out_features == 10
    for name, value in made.state_dict().items():
        if not name.startswith("head"):
            assert torch.equal(value, model.state_dict()[name]), name


def parsed(*words):
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    return parser.parse_args([str(word) for word in words if word != "train"])


def test_options_and_settings_make_the_recipe():
    options = ("--data", "d", "--output", "o", "--model", "efficientformerv2_l")
    assert train._recipe(parsed(*options)) == Recipe(drop_path=0.1)
    more = ("--recipe", "paper-450", "--set", "mixup=0.2", "--batch", "512", "--set", "drop_path=0")
    assert train._recipe(parsed(*options, *more)) == Recipe(epochs=450, mixup=0.2, batch=512, drop_path=0.0)


def test_help_suffices(capsys):
    for command, words in {
        "train": ["--data", "--resume", "paper-300, paper-450, finetune", "torchrun", "regnety_160"],
        "evaluate": ["--data", "--checkpoint", "--img-size"],
    }.items():
        with pytest.raises(SystemExit) as stopped:
            main([command, "--help"])
        assert stopped.value.code == 0
        out = capsys.readouterr().out
        assert all(word in out for word in words), command
        if command == "train":
            for entry in fields(Recipe):
                source = entry.metadata["source"].split(" ")[0]
                value = re.escape(repr(entry.default))
                assert re.search(rf"^  {entry.name} +{value}  \({source}", out, re.MULTILINE), entry.name
    assert set(PRESETS) == {"paper-300", "paper-450", "finetune"}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--set", "epochs"], "--set takes NAME=VALUE, but got 'epochs'"),
        (["--set", "epohcs=3"], "unknown entry of a recipe 'epohcs'"),
        (["--recipe", "paper"], "unknown recipe 'paper'"),
        (["--model", "efficientformerv2_s9"], "unknown model 'efficientformerv2_s9'"),
        (["--model", "mobilenetv2_100"], "mobilenetv2_100 is trained without drop-path"),
        (["--data", "no-such-folder"], "there is no folder 'no-such-folder'"),
        (["--dataset", "toch/cifar10"], "unknown dataset 'toch/cifar10'. Did you mean 'torch/cifar10'?"),
        (["--device", "gpu"], "--device takes auto, cpu, cuda"),
        (["--teacher-checkpoint", "x.pth"], "--teacher-checkpoint is of a --teacher"),
        (["--teacher", "regnety_16"], "unknown teacher 'regnety_16'"),
        (["--checkpoint", "no-such.pth"], "no-such.pth' is not a file"),
        (["--set", "interpolation=cubic"], "interpolation is one of bicubic, bilinear, box"),
        (["--set", "erasing_mode=grey"], "erasing_mode is one of pixel, const, rand"),
        (["--set", "auto_augment=rand-q9"], "auto_augment 'rand-q9' is no policy of timm"),
        (["--set", "auto_augment=best"], "auto_augment 'best' is no policy of timm"),
        (["--in-channels", "1", "--set", "auto_augment=best"], "auto_augment 'best' is no policy"),
        (["--num-classes", "12"], "has 10 classes, but 12 were asked for"),
        (["--in-channels", "2"], "pictures have 1 or 3 channels"),
        (["--workers", "-1"], "--workers takes 0, which is none beside this one, to 1024, but got -1"),
        (["--seed", "99999999999999999999"], "seed must be at most 9223372036854775807"),
        (["--checkpoint-classes", "0"], "--checkpoint-classes is how many --checkpoint has, and not 0"),
        (["--batch", "48"], "32 images for training do not fill one batch of 48"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(capsys, tmp_path, digits, more, words):
    code, _, err = run(capsys, *arguments(digits, tmp_path / "run", *more))
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert words in err


def test_a_teacher_of_other_classes_is_refused(capsys, tmp_path, weights):
    data = write_digits(tmp_path / "data", 32, 16, classes=5)
    more = ("--teacher", S0, "--teacher-checkpoint", weights)
    code, _, err = run(capsys, *arguments(data, tmp_path / "run", *more))
    assert code == 2
    assert f"the teacher {S0} tells 10 classes apart, and the data has 5: take a teacher that was" in err
    assert "with --teacher-checkpoint, or none." in err
    assert "num_classes" not in err


@pytest.mark.parametrize(
    ("command", "more", "told"),
    [
        (
            "train",
            ["--checkpoint-classes", 7],
            "has 10 classes, as the data has: leave out --checkpoint-classes",
        ),
        ("train", ["--img-size", 64], "images of 17 to 32 pixels a side: give by --img-size the size that"),
        ("train", ["--in-channels", 1], "the weights take images of 3 channels: give --in-channels 3"),
        ("train", ["--model", "efficientformerv2_s1"], f"of another model: give --model {S0}."),
        (
            "evaluate",
            ["--img-size", 64],
            "images of 17 to 32 pixels a side: give by --img-size the size that",
        ),
        (
            "evaluate",
            [],
            "tell 10 classes apart, and the data has 5: give a --checkpoint that was trained on",
        ),
    ],
)
def test_weights_that_do_not_fit_are_told_by_options(capsys, tmp_path, digits, weights, command, more, told):
    """Not by those of create_model, which no command takes."""
    if command == "train":
        words = arguments(digits, tmp_path / "run", "--set", "drop_path=0")
    else:
        data = digits if more else write_digits(tmp_path / "data", 32, 16, classes=5)
        words = ["evaluate", "--data", data, "--img-size", 32]
    code, _, err = run(capsys, *words, "--checkpoint", weights, *more)
    assert code == 2
    assert err.startswith(f"error: '{weights}': ")
    assert told in err
    assert "pass " not in err


def test_weights_of_other_classes_than_was_said(capsys, tmp_path, digits, weights):
    """Of a file with 10 classes for data of 5."""
    data = write_digits(tmp_path / "data", 32, 16, classes=5)
    more = ("--checkpoint", weights, "--checkpoint-classes", 7)
    code, _, err = run(capsys, *arguments(data, tmp_path / "run", *more))
    assert code == 2
    assert "it has 10 classes, and --checkpoint-classes is 7: give --checkpoint-classes 10" in err


def test_nothing_to_evaluate(capsys, digits):
    code, _, err = run(capsys, "evaluate", "--data", digits)
    assert code == 2
    assert "there are no weights to evaluate: give --checkpoint FILE or --pretrained" in err


@pytest.mark.parametrize("missing", [["timm"], ["torchmetrics", "tensorboard"]])
def test_packages_that_are_missing_are_named(monkeypatch, capsys, tmp_path, digits, missing):
    for name in missing:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UnavailableError, match="training needs"):
        packages.require()
    with pytest.raises(UnavailableError, match=r"pip install 'effv2_kernels\[search\]'"):
        effv2_kernels.train.__getattr__("Trainer")
    for command in (arguments(digits, tmp_path / "run"), ["evaluate", "--data", digits]):
        code, _, err = run(capsys, *command)
        assert code == 2
        assert f"training needs {', '.join(missing)}, which" in err
        assert "pip install 'effv2_kernels[search]'" in err


def test_recipes_and_help_need_none_of_the_packages():
    blocked = "".join(f"sys.modules[{name!r}] = None;" for name in packages.PACKAGES)
    code = f"""
import sys; {blocked}
from effv2_kernels.train import PRESETS
from effv2_kernels.__main__ import main
print(PRESETS["paper-300"].epochs)
main(["train", "--help"])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("300\n")
    assert "--resume" in done.stdout


def test_attributes_that_are_not_there():
    with pytest.raises(AttributeError, match="no attribute 'Trainers'"):
        effv2_kernels.train.__getattr__("Trainers")
    for name in effv2_kernels.train.__all__:
        assert getattr(effv2_kernels.train, name) is not None


def test_a_verdict_names_the_first_few():
    found = evaluate.Comparison()
    found.images, found.differing = 9, [f"image {i}" for i in range(7)]
    assert found.verdict().splitlines() == [
        "DIFFERENT for 7 of 9 images:",
        *(f"image {i}" for i in range(5)),
        "and 2 more",
    ]
