"""Runs that end early go on with the same bits, and where a loss is none the last good checkpoint stays."""

import math
from dataclasses import replace

import pytest
import torch

pytest.importorskip("timm")

from training import RECIPE, make_trainer, same, tiny_model, write_digits

from effv2_kernels.errors import InputError, TrainingError
from effv2_kernels.train import Classification, state


class Interrupted(Exception):
    pass


def interrupt_after(trainer, epochs):
    """Stop a run in the middle of an epoch, with no chance to write anything."""
    calls = 0
    backward = trainer.objective.backward

    def counting(*args):
        nonlocal calls
        calls += 1
        if calls > epochs * len(trainer.loader) + 2:
            raise Interrupted
        return backward(*args)

    trainer.objective.backward = counting
    with pytest.raises(Interrupted):
        trainer.fit()


@pytest.mark.parametrize(
    ("changes", "workers"),
    [
        ({}, 2),
        ({"accumulation": 2, "amp": "bf16", "optimizer": "sgd", "epochs": 2}, 0),
        ({"repeats": 2, "mixup": 0.0, "cutmix": 0.0, "epochs": 2, "channels_last": True}, 0),
    ],
)
def test_a_run_that_was_interrupted_ends_with_the_same_bits(tmp_path, digits, group, changes, workers):
    recipe = replace(RECIPE, **changes)
    whole = make_trainer(tmp_path / "whole", digits, group, recipe, workers=workers)
    last = whole.fit()
    assert last["epoch"] == recipe.epochs + 1 == whole.epochs  # with the one that cools down
    first = make_trainer(tmp_path / "parts", digits, group, recipe, workers=workers)
    interrupt_after(first, 2)
    torch.rand(7)  # whatever happens in between
    resumed = make_trainer(
        tmp_path / "parts", digits, group, recipe, model=tiny_model(seed=99), resume=True, workers=workers
    )
    assert resumed.run.epoch == 2
    resumed.fit()
    assert same(whole.model.state_dict(), resumed.model.state_dict())
    assert same(whole.ema.module.state_dict(), resumed.ema.module.state_dict())
    ends = [state.load(tmp_path / name / "last.pt") for name in ("whole", "parts")]
    assert same(ends[0]["state_dict_ema"], ends[1]["state_dict_ema"])
    assert ends[0]["updates"] == ends[1]["updates"] > 0
    for a, b in zip(ends[0]["rows"], ends[1]["rows"], strict=True):
        assert {**a, "seconds": 0} == {**b, "seconds": 0}
    best = [(tmp_path / name / "best.safetensors").read_bytes() for name in ("whole", "parts")]
    assert best[0] == best[1]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_none_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path, digits, group, value):
    class Failing(Classification):
        calls = 0

        def backward(self, *args):
            Failing.calls += 1
            found = super().backward(*args)
            return {**found, "loss": value} if Failing.calls == 6 else found

    trainer = make_trainer(tmp_path, digits, group, objective=Failing(RECIPE))
    with pytest.raises(TrainingError) as raised:
        trainer.fit()
    said = str(raised.value)
    assert f"the loss is {value} in step 2 of epoch 2" in said
    assert f"the checkpoint '{tmp_path / 'last.pt'}' is that of the end of epoch 1" in said
    kept = state.load(tmp_path / "last.pt")
    assert kept["epoch"] == 1
    assert all(bool(v.isfinite().all()) for v in kept["state_dict"].values())
    resumed = make_trainer(tmp_path, digits, group, resume=True)
    assert resumed.fit()["epoch"] == 4


def test_weights_that_are_none_are_told_before_there_is_a_checkpoint(tmp_path, digits, group):
    model = tiny_model()
    with torch.no_grad():
        model.head.weight[0, 0] = torch.nan
    with pytest.raises(TrainingError, match="the loss is nan in step 1 of epoch 1; there is no"):
        make_trainer(tmp_path, digits, group, model=model).fit()


def test_an_image_that_breaks_on_the_way_keeps_the_last_good_checkpoint(tmp_path, group):
    data = write_digits(tmp_path / "data")
    trainer = make_trainer(tmp_path / "run", data, group)
    broken = sorted((data / "train").rglob("*.png"))[5]
    after_one = trainer.run.finish_epoch

    def breaking(*args):
        after_one(*args)
        broken.write_bytes(b"")

    trainer.run.finish_epoch = breaking
    with pytest.raises(InputError, match=f"'{broken}' is no picture that can be read"):
        trainer.fit()
    assert state.load(tmp_path / "run" / "last.pt")["epoch"] == 1
