"""The command that trains a supernet: what it leaves behind, and what it refuses."""

import json
import re
import shutil

import pytest
import torch
from checks import one_torch_thread
from training import ARCHITECTURE, write_digits, write_space

from effv2_kernels import create_model
from effv2_kernels.__main__ import main
from effv2_kernels.search.space import SearchSpace
from effv2_kernels.search.supernet import Supernet, supernet_file
from effv2_kernels.train import open_data, state


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp("digits"), 32, 16)


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    return write_space(tmp_path_factory.mktemp("space") / "space.json")


def run(capsys, *words):
    with one_torch_thread():
        code = main([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def arguments(digits, space, folder, *more):
    settings = (
        "warmup_epochs=1",
        "cooldown_epochs=0",
        "amp=none",
        "repeats=0",
        "lr_batch=16",
        "ema_decay=0.9",
    )
    given = [word for setting in settings for word in ("--set", setting)]
    return [
        *("supernet", "--data", digits, "--space", space, "--output", folder, "--workers", 0, "--batch", 16),
        *("--epochs", 3, "--random-subnets", 1, "--layer-scale", 0.1, "--device", "cpu", *given),
        *("--hold-out", 0.25, *more),
    ]


def test_a_supernet_is_trained_and_kept(capsys, tmp_path, digits, space):
    code, out, err = run(capsys, *arguments(digits, space, tmp_path / "run"))
    assert code == 0, err
    assert "24 images of 10 classes, 8 to evaluate on; beginning, 3 epochs in all" in out
    assert re.search(
        r"^epoch 3: lr .*loss .*smallest_loss .*random_loss .*top1 .*smallest_top1", out, re.MULTILINE
    )
    found = supernet_file.load(tmp_path / "run" / "supernet.safetensors", SearchSpace.read(space))
    torch.manual_seed(0)
    begun = Supernet(found.space, num_classes=10, distillation=False, layer_scale_init=0.1)
    assert found.drop_path_rate == 0
    assert begun.state_dict().keys() == found.state_dict().keys()
    moved = [not torch.equal(found.state_dict()[n], p) for n, p in begun.named_parameters()]
    assert sum(moved) > len(moved) / 2
    assert found.subnet(found.space.smallest())(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


def test_a_run_that_was_ended_goes_on_with_the_same_bits(capsys, tmp_path, digits, space, monkeypatch):
    """The random networks of its steps as well, which an epoch does not know of."""
    from effv2_kernels.train.run import Run

    code, _, err = run(capsys, *arguments(digits, space, tmp_path / "whole"))
    assert code == 0, err
    finish = Run.finish_epoch

    def ended(self, *rest):
        finish(self, *rest)
        if self.epoch == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "finish_epoch", ended)
        with pytest.raises(KeyboardInterrupt):
            run(capsys, *arguments(digits, space, tmp_path / "run"))
    code, out, err = run(capsys, *arguments(digits, space, tmp_path / "run", "--resume"))
    assert code == 0, err
    assert "going on behind epoch 2" in out
    one, other = (
        supernet_file.load(tmp_path / name / "supernet.safetensors").state_dict() for name in ("whole", "run")
    )
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"img_size": [32, 48]}, "training takes square images, and those of the space have 32x48"),
        ({"in_channels": 1}, "for images of 1 channels: give --in-channels 1"),
    ],
)
def test_spaces_that_the_images_do_not_fit(capsys, tmp_path, digits, space, sizes, message):
    path = tmp_path / "space.json"
    path.write_text(json.dumps(json.loads(space.read_text()) | sizes))
    code, _, err = run(capsys, *arguments(digits, path, tmp_path / "run"))
    assert code == 2
    assert message in err


@pytest.mark.parametrize("more", [("--img-size", 64), ("--set", "img_size=224")])
def test_the_space_says_the_size_of_images(capsys, tmp_path, digits, space, more):
    code, _, err = run(capsys, *arguments(digits, space, tmp_path / "run", *more))
    assert code == 2
    assert (
        f"takes images of its space's size, here 32x32, but --img-size is {str(more[1])[-3:]}"
        in err.replace("=", " ")
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("option", "value"),
    [*(("--hold-out", value) for value in ("nan", "inf", "-inf", "1", "-0.1")), ("--layer-scale", "nan")],
)
def test_numbers_that_are_none(capsys, tmp_path, digits, space, option, value):
    code, _, err = run(capsys, *arguments(digits, space, tmp_path / "run", f"{option}={value}"))
    assert code == 2
    assert f"{option} must be a " in err
    assert f"but got {float(value)}" in err


def test_the_largest_learns_from_a_teacher(capsys, tmp_path, digits, space):
    torch.manual_seed(0)
    ARCHITECTURE.save(tmp_path / "architecture.json")
    teacher = create_model(architecture=ARCHITECTURE, num_classes=10, img_size=32)
    torch.save(teacher.state_dict(), tmp_path / "teacher.pth")
    more = ("--teacher", tmp_path / "architecture.json", "--teacher-checkpoint", tmp_path / "teacher.pth")
    words = arguments(digits, space, tmp_path / "run", *more)
    words[words.index("--epochs") + 1] = 2
    code, out, err = run(capsys, *words)
    assert code == 0, err
    assert re.search(r"^epoch 2: .*target_loss .*teacher_loss .*smallest_loss", out, re.MULTILINE)
    found = supernet_file.load(tmp_path / "run" / "supernet.safetensors")
    assert found.distillation
    assert not torch.equal(found.head.weight, found.head_dist.weight)
    told = supernet_file.images_of(tmp_path / "run" / "supernet.safetensors")
    assert told["hold_out"] == 0.25
    assert told["trained_on"] == open_data(digits, hold_out=0.25).train.digest()
    # One that tells other classes apart is no teacher.
    other = create_model(architecture=ARCHITECTURE, num_classes=7, img_size=32)
    torch.save(other.state_dict(), tmp_path / "teacher.pth")
    code, _, err = run(capsys, *arguments(digits, space, tmp_path / "other", *more))
    assert code == 2
    assert "the teacher " in err
    assert "7" in err


def test_a_run_goes_on_with_what_it_was_begun_with(capsys, tmp_path, digits, space):
    words = arguments(digits, space, tmp_path / "run")
    words[words.index("--epochs") + 1] = 2
    assert run(capsys, *words)[0] == 0
    other = tmp_path / "other.json"
    other.write_text(space.read_text().replace("[8, 16]", "[8, 24]", 1))
    for options, message in (
        (("--space", other), "space "),
        (("--hold-out", 0.5), "hold_out 0.25"),
        (("--random-subnets", 2), "random_subnets 1"),
        (("--layer-scale", 0.2), "layer_scale 0.1"),
    ):
        code, _, err = run(capsys, *words, "--resume", *options)
        assert code == 2
        assert "is of another run: " in err
        assert message in err


def test_a_run_goes_on_with_the_images_that_it_was_begun_with(capsys, tmp_path, digits, space):
    """By their names: with others, it might be compared on images that it was trained on."""
    data, folder = shutil.copytree(digits, tmp_path / "data"), tmp_path / "run"
    words = arguments(data, space, folder)
    words[words.index("--epochs") + 1] = 2
    assert run(capsys, *words)[0] == 0
    data = words[words.index("--data") + 1] = data.rename(tmp_path / "moved")
    code, out, err = run(capsys, *words, "--resume")
    assert (code, "best top-1" in out, "did not note" in out) == (0, True, False), err
    renamed = next((data / "train").rglob("*.png"))
    renamed.rename(renamed.with_name("0.png"))
    code, _, err = run(capsys, *words, "--resume")
    assert code == 2
    assert "is of another run: trained_on " in err
    # Of a run that an earlier version began this is not known.
    content = state.load(folder / "last.pt")
    del content["identity"]["trained_on"]
    state.save(folder / "last.pt", content)
    code, out, err = run(capsys, *words, "--resume")
    assert code == 0, err
    assert "begun by a version that did not note trained_on: so this is not compared" in out


def test_a_run_without_its_best_weights(capsys, tmp_path, digits, space):
    """Someone took them away after its end: those of the last epoch are what is left, and it says so."""
    words = arguments(digits, space, tmp_path / "run")
    words[words.index("--epochs") + 1] = 2
    assert run(capsys, *words)[0] == 0
    best = tmp_path / "run" / "best.safetensors"
    best.write_bytes(best.read_bytes()[:-1])
    code, _, err = run(capsys, *words, "--resume")
    assert code == 2
    assert f"'{best}' is truncated" in err
    best.unlink()
    (tmp_path / "run" / "supernet.safetensors").unlink()
    code, out, err = run(capsys, *words, "--resume")
    assert code == 0, err
    assert "best.safetensors' is gone, so these weights are those of the last epoch; wrote" in out
    assert "best top-1" not in out
    found = supernet_file.load(tmp_path / "run" / "supernet.safetensors").state_dict()
    last = state.load(tmp_path / "run" / "last.pt")["state_dict_ema"]
    assert all(torch.equal(found[name], value) for name, value in last.items())
