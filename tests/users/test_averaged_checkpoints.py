"""People train with an average of the weights (EMA, SWA), evaluate the average, and load what they saved.

timm's loader takes the average where a file has one; a tool that takes the raw weights gives other numbers
than those that the training reported, and no error.
"""

import logging
from collections import OrderedDict

import pytest
import torch
from models import TINY, randomise
from torch import nn

from effv2_kernels.__main__ import main
from effv2_kernels.errors import CheckpointError, ModelError, UnknownNameError
from effv2_kernels.families.efficientformer_v2 import weights as checkpoint
from effv2_kernels.reference import VARIANTS, create_model

S0 = "efficientformerv2_s0"
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@pytest.fixture
def pair(generator):
    """The state dicts of one network: raw weights, and an average of them."""
    return TINY.build(generator).state_dict(), TINY.build(generator).state_dict()


def prefixed(prefix, state):
    return {prefix + key: value for key, value in state.items()}


def parameters(state):
    return {key: value for key, value in state.items() if not key.endswith(_STATISTICS)}


def averaged_model(state, count=3):
    return prefixed("module.", state) | {"n_averaged": torch.tensor(count)}


# Name -> (what a trainer saves of raw weights and their average, where the average and the raw ones are).
BOTH = {
    "timm": (lambda r, a: {"epoch": 3, "arch": S0, "state_dict": r, "state_dict_ema": a}, "state_dict_ema"),
    "timm_wrapped_twice": (
        lambda r, a: {
            "state_dict": prefixed("_orig_mod.module.", r),
            "state_dict_ema": prefixed("module._orig_mod.", a),
        },
        "state_dict_ema",
    ),
    "deit": (lambda r, a: {"model": r, "model_ema": a, "epoch": 3}, "model_ema"),
    "torchvision": (lambda r, a: {"model": r, "model_ema": averaged_model(a)}, "model_ema"),
    "yolo": (lambda r, a: {"model": r, "ema": a, "updates": 100, "epoch": -1}, "ema"),
    "yolo_half": (lambda r, a: {"model": r, "ema": {k: v.half() for k, v in a.items()}}, "ema"),
    "rt_detr": (
        lambda r, a: {"model": r, "ema": {"module": a, "updates": 100, "warmups": 10}},
        "ema / module",
    ),
    "module_keys": (lambda r, a: {"net": r, "ema_model": prefixed("module.", a)}, "ema_model"),
    "swa_state_dict": (lambda r, a: {"model_state_dict": r, "swa_state_dict": averaged_model(a)}, "swa_"),
    "lightning_weight_averaging": (
        lambda r, a: {
            "state_dict": prefixed("model.", a),
            "current_model_state": prefixed("model.", r),
            "averaging_state": {"n_averaged": torch.tensor(9)},
        },
        "state_dict",
    ),
    "lightning_swa": (
        lambda r, a: {
            "state_dict": prefixed("model.", r),
            "callbacks": {
                "ModelCheckpoint{'monitor': 'ema_loss'}": {"best_model_score": torch.tensor(0.5)},
                "StochasticWeightAveraging": {
                    "n_averaged": 4,
                    "average_model_state": prefixed("model.", a),
                },
            },
        },
        "callbacks / StochasticWeightAveraging / average_model_state",
    ),
    "lightning_callback": (
        lambda r, a: {
            "state_dict": prefixed("net.", r),
            "callbacks": {"EMACallback": {"ema_state_dict": prefixed("net.", a)}},
        },
        "callbacks / EMACallback / ema_state_dict",
    ),
    "submodule": (
        lambda r, a: {
            "state_dict": prefixed("model.", r)
            | prefixed("model_ema.module.", a)
            | {"criterion.weight": torch.ones(3)}
        },
        "state_dict / model_ema.module.*",
    ),
    "ema_pytorch": (
        lambda r, a: (
            prefixed("online_model.", r)
            | prefixed("ema_model.", a)
            | {"initted": torch.tensor(True), "step": torch.tensor(7)}
        ),
        "ema_model.*",
    ),
    "ema_pytorch_beside_the_model": (
        lambda r, a: {"model": r, "ema": prefixed("online_model.", r) | prefixed("ema_model.", a)},
        "ema / ema_model.*",
    ),
    "an_average_inside": (lambda r, a: {"model": r | prefixed("ema_model.", a)}, "model / ema_model.*"),
    # Both of OpenMMLab's hooks put the average into the model's own place in what they save.
    "mmengine": (
        lambda r, a: {
            "meta": {"epoch": 3},
            "state_dict": prefixed("backbone.", a),
            "ema_state_dict": prefixed("module.backbone.", r) | {"steps": torch.tensor(50)},
        },
        "state_dict",
    ),
    "mmcv": (
        lambda r, a: {
            "state_dict": prefixed("backbone.", a)
            | {f"ema_backbone_{key.replace('.', '_')}": value for key, value in r.items()}
        },
        "state_dict",
    ),
}


def read(content, tmp_path, *weights):
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    return checkpoint.read(path, *weights).tensors


def same(actual, expected):
    return actual.keys() == expected.keys() and all(
        torch.equal(actual[key], expected[key].to(actual[key].dtype)) for key in expected
    )


@pytest.mark.situation(
    "load a checkpoint with an average of the weights (timm, torchvision, DeiT, YOLO, Lightning, OpenMMLab)",
    'works: the average is taken, as in timm, and said; `weights="raw"` takes the raw weights',
)
@pytest.mark.parametrize("layout", BOTH)
def test_the_average_is_taken_and_said(layout, pair, tmp_path, caplog):
    build, where = BOTH[layout]
    raw, average = pair
    content = build(raw, average)
    with caplog.at_level(logging.INFO, logger="effv2_kernels.checkpoint"):
        assert same(read(content, tmp_path), average)
        assert same(read(content, tmp_path, "average"), average)
        assert same(read(content, tmp_path, "raw"), raw)
    unasked, asked, chosen = caplog.records
    # Where nobody chose, the line is seen without any set-up of logging.
    assert (unasked.levelno, asked.levelno, chosen.levelno) == (logging.WARNING, logging.INFO, logging.INFO)
    assert f"took the average of the weights in '{where}" in unasked.getMessage()
    assert "ask for weights 'raw'" in unasked.getMessage()
    assert "took the raw weights" in chosen.getMessage()
    assert "\n" not in unasked.getMessage()


ALONE = {
    "state_dict_ema": lambda a: {"state_dict_ema": a, "epoch": 3},
    "stripped_yolo": lambda a: {"ema": a, "model": None, "optimizer": None},
    "averaged_model": averaged_model,
    "averaged_model_without_prefix": lambda a: a | {"n_averaged": torch.tensor(3)},
    "averaged_model_in_a_dict": lambda a: {"model": averaged_model(a), "epoch": 3},
}


@pytest.mark.parametrize("layout", ALONE)
def test_an_average_alone(layout, pair, tmp_path, caplog):
    content = ALONE[layout](pair[1])
    with caplog.at_level(logging.INFO, logger="effv2_kernels.checkpoint"):
        assert same(read(content, tmp_path), pair[1])
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert "took the average of the weights" in record.getMessage()
    with pytest.raises(CheckpointError, match=r"holds no raw weights.*'average' or 'auto'"):
        read(content, tmp_path, "raw")


PLAIN = {
    "bare": lambda r: r,
    "model": lambda r: {"model": r},
    "no_ema": lambda r: {"state_dict": r, "state_dict_ema": None},
    "ema_of_nothing": lambda r: {"model": r, "ema": {"decay": torch.tensor(0.99), "updates": 0}},
    "other_metrics": lambda r: {"state_dict": r, "ema_loss": torch.tensor(0.5), "optimizer": {"state": {}}},
    "not_begun": lambda r: {
        "state_dict": r,
        "callbacks": {
            "StochasticWeightAveraging": {
                "n_averaged": 0,
                "average_model_state": {k: torch.zeros_like(v) for k, v in r.items()},
            }
        },
    },
    "averaged_model_not_begun": lambda r: {
        "model": r,
        "ema": averaged_model({k: torch.zeros_like(v) for k, v in r.items()}, 0),
    },
    "lightning_not_begun": lambda r: {
        "state_dict": {k: torch.zeros_like(v) for k, v in r.items()},
        "current_model_state": r,
        "averaging_state": {"n_averaged": torch.tensor(0)},
    },
    "adam": lambda r: {
        "model": r,
        "optimizer": {"state": {i: {"exp_avg": v + 1, "ema": v + 1} for i, v in enumerate(r.values())}},
    },
}


@pytest.mark.situation(
    "ask for an average that a checkpoint has not", "refused: `CheckpointError` says what the file holds"
)
@pytest.mark.parametrize("layout", PLAIN)
def test_without_an_average(layout, pair, tmp_path, caplog):
    content = PLAIN[layout](pair[0])
    with caplog.at_level(logging.INFO, logger="effv2_kernels.checkpoint"):
        assert same(read(content, tmp_path), pair[0])
        assert same(read(content, tmp_path, "raw"), pair[0])
    assert not caplog.records
    with pytest.raises(CheckpointError, match="holds no average of the weights"):
        read(content, tmp_path, "average")


@pytest.mark.parametrize("wrap", [lambda p: p, lambda p: {"shadow": p, "decay": 0.99}])
def test_an_average_of_parameters_alone_gets_the_statistics_of_the_raw_weights(wrap, pair, tmp_path, caplog):
    raw, average = pair
    actual = read({"model": raw, "ema": wrap(parameters(average))}, tmp_path)
    statistics = {key: value for key, value in raw.items() if key.endswith(_STATISTICS)}
    assert same(actual, parameters(average) | statistics)
    assert "with the statistics of the BatchNorms in 'model'" in caplog.text


UNKNOWN = {
    # torch_ema keeps a list without names, latent-diffusion code names without dots.
    "list": (lambda r, a: {"model": r, "ema": {"decay": 0.9, "shadow_params": list(a.values())}}, "'ema'"),
    "no_dots": (
        lambda r, a: {
            "state_dict": prefixed("model.", r)
            | {f"model_ema.{key.replace('.', '')}": value for key, value in a.items()}
        },
        "'model_ema'",
    ),
}


@pytest.mark.situation(
    "load a checkpoint whose average has no names that tell what it is",
    'refused: save the averaged model\'s state dict, or pass `weights="raw"`',
)
@pytest.mark.parametrize("layout", UNKNOWN)
def test_an_average_that_cannot_be_read_is_not_passed_over(layout, pair, tmp_path):
    build, where = UNKNOWN[layout]
    content = build(*pair)
    for weights in ("auto", "average"):
        with pytest.raises(CheckpointError, match=rf"keeps an average.*{where}.*not known here.*'raw'"):
            read(content, tmp_path, weights)
    assert same(read(content, tmp_path, "raw"), pair[0])


def test_several_networks_are_not_chosen_between(pair, tmp_path):
    first, second = pair
    with pytest.raises(CheckpointError, match="holds several networks, 'student', 'teacher'"):
        read({"student": first, "teacher": second}, tmp_path)
    with pytest.raises(CheckpointError, match="holds several averages, 'ema', 'swa'"):
        read({"model": first, "ema": second, "swa": first}, tmp_path)
    # timm's order, where a file has both of its names.
    assert same(read({"model_ema": first, "state_dict_ema": second}, tmp_path), second)


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "model.", "backbone.", "model.backbone.", "net.encoder.", "model.0."]
)
def test_prefixes(prefix, pair, tmp_path):
    state = prefixed(prefix, pair[0]) | {"loss.weight": torch.ones(3)}
    assert same(read({"state_dict": state}, tmp_path), pair[0])
    assert same(read({"epoch": 3, "nested": {"model": OrderedDict(state)}}, tmp_path), pair[0])


def test_the_trainer_of_timm_and_its_loader(generator, tmp_path):
    """What timm's own trainer saves gives what timm's own loader takes."""
    timm = pytest.importorskip("timm")
    utils = pytest.importorskip("timm.utils")
    model = randomise(timm.create_model(S0, img_size=64, num_classes=6), generator)
    ema = utils.ModelEmaV2(model)
    randomise(ema.module, generator)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    saver = utils.CheckpointSaver(model, optimizer, model_ema=ema, checkpoint_dir=str(tmp_path))
    saver.save_checkpoint(3, metric=0.5)
    path = tmp_path / "last.pth.tar"
    theirs = timm.models.load_state_dict(str(path))
    assert same(create_model(S0, checkpoint=path, img_size=64, num_classes=6).state_dict(), theirs)
    theirs = timm.models.load_state_dict(str(path), use_ema=False)
    ours = create_model(S0, checkpoint=path, img_size=64, num_classes=6, weights="raw")
    assert same(ours.state_dict(), theirs)


def test_the_average_of_torch(generator, tmp_path):
    model = TINY.build(generator)
    average = torch.optim.swa_utils.AveragedModel(model, use_buffers=True)
    for _ in range(2):
        average.update_parameters(model)
        randomise(model, generator)
    actual = read({"model": model.state_dict(), "swa_model": average.state_dict()}, tmp_path)
    assert same(actual, average.module.state_dict())
    assert not same(actual, model.state_dict())


def test_the_names_of_timms_feature_maps(generator, tmp_path):
    timm = pytest.importorskip("timm")
    theirs = randomise(timm.create_model(S0, features_only=True, img_size=64), generator)
    torch.save({"state_dict_ema": theirs.state_dict()}, tmp_path / "features.pth")
    ours = create_model(S0, checkpoint=tmp_path / "features.pth", features_only=True, img_size=64)
    x = torch.randn(1, 3, 64, 64, generator=generator)
    with torch.inference_mode():
        for actual, expected in zip(ours(x), theirs(x), strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_another_word(pair, tmp_path):
    with pytest.raises(UnknownNameError, match=r"unknown weights 'avrage'\. Did you mean 'average'"):
        create_model(S0, checkpoint=tmp_path / "nowhere.pth", weights="avrage")
    with pytest.raises(ModelError, match="weights='raw' chooses among those of a checkpoint"):
        create_model(S0, weights="raw")


@pytest.mark.situation(
    "load a checkpoint whose keys mean nothing here", "refused: `CheckpointError` lists the keys that it has"
)
@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"epoch": 3, "arch": "x"}, ["holds no tensors", "'epoch' (int)", "'arch' (str)", "2 in all"]),
        (
            {"generator": {"conv.weight": torch.ones(3), "conv.bias": torch.ones(3)}, "history": [1, 2]},
            [
                "no EfficientFormerV2",
                "'generator' (dict of 2 tensors, such as conv.weight)",
                "'history' (list of 2)",
            ],
        ),
        ({"w": torch.ones(2, 3), "epoch": 1}, ["no EfficientFormerV2", "'w' (tensor (2, 3))"]),
        ({"features.0.weight": torch.ones(3)}, ["no EfficientFormerV2", "features.0.weight (1 in all)"]),
        ({}, ["holds no tensors, but nothing"]),
    ],
)
def test_unknown_keys_are_listed(content, words, tmp_path):
    with pytest.raises(CheckpointError) as caught:
        read(content, tmp_path)
    for word in words:
        assert word in str(caught.value)


def test_a_checkpoint_that_holds_itself(pair, tmp_path):
    content = {"model": pair[0]}
    content["history"] = {"last": content}
    assert same(read(content, tmp_path), pair[0])


def run(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_command_line_says_it_on_stderr_and_lets_choose(generator, tmp_path, capsys, monkeypatch):
    files = pytest.importorskip("safetensors.torch")
    monkeypatch.setitem(VARIANTS, S0, TINY.architecture)
    options = {"img_size": 32, "num_classes": 6}
    raw = randomise(create_model(S0, **options), generator).state_dict()
    average = randomise(create_model(S0, **options), generator).state_dict()
    torch.save({"state_dict": raw, "state_dict_ema": average}, tmp_path / "both.pth")
    torch.save(raw, tmp_path / "raw.pth")
    torch.save(average, tmp_path / "average.pth")
    arguments = ["--img-size", 32, "--num-classes", 6, "--checkpoint"]

    def convert(name, *more):
        out = tmp_path / "out.effv2"
        code, _, err = run(capsys, "convert", out, *arguments, tmp_path / name, *more)
        assert code == 0
        return files.load_file(out), err

    (only_raw, nothing), (only_average, _) = convert("raw.pth"), convert("average.pth")
    assert nothing == ""
    tensors, line = convert("both.pth")
    assert same(tensors, only_average)
    assert line.count("\n") == 1
    assert "took the average of the weights in 'state_dict_ema'" in line
    tensors, line = convert("both.pth", "--weights", "raw")
    assert same(tensors, only_raw)
    assert "took the raw weights in 'state_dict'" in line
    code, _, err = run(capsys, "verify", *arguments, tmp_path / "raw.pth", "--weights", "average")
    assert code == 2
    assert err.startswith("error: ")
    assert "holds no average" in err
    code, _, err = run(capsys, "explain", *arguments, tmp_path / "out.effv2", "--weights", "raw")
    assert code == 2
    assert "leave out --weights" in err


def test_the_line_is_seen_without_any_set_up(pair, tmp_path, capfd):
    """The last resort of Python's logging prints warnings; pytest's own handlers are taken away for it."""
    root = logging.getLogger()
    kept, root.handlers = root.handlers, []
    try:
        read({"state_dict": pair[0], "state_dict_ema": pair[1]}, tmp_path)
    finally:
        root.handlers = kept
    assert capfd.readouterr().err.count("took the average of the weights") == 1


def test_whole_modules_are_named(pair, tmp_path):
    """A YOLO-style trainer saves the modules themselves, which only pickle could read."""
    torch.save({"model": None, "ema": nn.Sequential(nn.Linear(2, 2)), "updates": 3}, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match=r"never loaded.*w\['ema'\]"):
        checkpoint.read(tmp_path / "m.pth")
