"""The loop: it learns, keeps what is best, and does what its recipe says."""

import csv
from dataclasses import replace

import pytest
import torch
from torch import nn

pytest.importorskip("timm")

from training import PLAIN, RECIPE, Plain, make_trainer, same, tiny_model

from effv2_kernels.errors import UnknownNameError
from effv2_kernels.families.efficientformer_v2 import EfficientFormerV2
from effv2_kernels.train import Classification, Recipe


def test_another_seed_gives_another_run(tmp_path, digits, group):
    recipe = replace(RECIPE, epochs=2, cooldown_epochs=0)
    ends = []
    for seed in (0, 1):
        trainer = make_trainer(tmp_path / str(seed), digits, group, replace(recipe, seed=seed))
        trainer.fit()
        ends.append(trainer.model.state_dict())
    assert not same(*ends)


def test_it_learns_and_leaves_what_can_be_read(tmp_path, digits, group):
    recipe = replace(PLAIN, epochs=10, lr=0.5, ema_decay=0.5, drop_path=0.0, smoothing=0.0)
    trainer = make_trainer(tmp_path, digits, group, recipe)
    shown = []
    reported = []
    trainer.fit(lambda what, share: shown.append((what, share)), reported.append)
    trainer.run.close()
    with (tmp_path / "log.csv").open() as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    assert [row["epoch"] for row in rows] == list(range(1, 12))
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
    assert rows[-1]["top1"] > 0.5 > 0.3 > rows[0]["top1"]
    assert rows == [dict(row) for row in reported]
    # The schedule: warm-up, cosine, cool-down.
    rates = [row["lr"] for row in rows]
    assert rates[0] == pytest.approx(1e-5)
    assert rates[1] == max(rates) <= 0.5 * 16 / 1024
    assert rates[1:] == sorted(rates[1:], reverse=True)
    assert rates[-1] == pytest.approx(1e-5)
    shares = [share for _, share in shown]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert (tmp_path / "plot.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    accumulator = events.EventAccumulator(str(tmp_path))
    accumulator.Reload()
    logged = [(event.step, event.value) for event in accumulator.Scalars("top1")]
    assert logged == [(row["epoch"], pytest.approx(row["top1"])) for row in rows]
    # What was best, of the model or of its average, and whole.
    from safetensors.torch import load_file

    best = load_file(tmp_path / "best.safetensors")
    model = tiny_model(drop_path=0.0)
    model.load_state_dict(best)
    expected = max(max(row["top1"], row["ema_top1"]) for row in rows)
    assert trainer.evaluate(model)["top1"] == pytest.approx(expected)
    assert trainer.run.best_value == expected


def test_parts_of_a_batch_make_the_step_of_the_whole(tmp_path, digits, group):
    """Without BatchNorm, accumulated gradients are those of the batch; all images are one batch here."""
    ends = []
    for parts in (1, 4):
        recipe = replace(PLAIN, batch=64, lr=16.0, accumulation=parts, optimizer="sgd", ema_decay=0.0)
        trainer = make_trainer(tmp_path / str(parts), digits, group, recipe, model=Plain())
        trainer.fit()
        assert trainer.updates == 4
        ends.append(trainer.model.state_dict())
    before = Plain().state_dict()
    for name, value in ends[0].items():
        moved = (value - before[name]).norm()
        assert float(moved) > 1e-3
        assert float((ends[1][name] - value).norm()) < 1e-4 * float(moved), name


def test_gradients_are_clipped_and_some_weights_do_not_decay(tmp_path, digits, group):
    trainer = make_trainer(tmp_path, digits, group, replace(RECIPE, weight_decay=0.5))
    decays = {
        id(p): entry["weight_decay"] for entry in trainer.optimizer.param_groups for p in entry["params"]
    }
    for name, parameter in trainer.model.named_parameters():
        free = parameter.ndim == 1 or name.endswith("attention_biases")
        assert decays[id(parameter)] == (0 if free else 0.5), name
    for parameter in trainer.model.parameters():
        parameter.grad = torch.full_like(parameter, 1e3)
    seen = {}
    trainer.scaler.step = lambda optimizer: seen.update(
        (name, p.grad.clone()) for name, p in trainer.model.named_parameters()
    )
    trainer._step()
    weight, gradient = trainer.model.head.weight, seen["head.weight"]
    # Of each output alone, at most 0.01 of its weights' norm (Brock et al., arXiv 2102.06171).
    ratio = gradient.norm(dim=1) / weight.norm(dim=1).clamp(min=1e-3)
    torch.testing.assert_close(ratio, torch.full_like(ratio, 0.01), rtol=1e-3, atol=0)


def test_what_is_computed_in_bf16_is_told_by_autocast(tmp_path, digits, group):
    seen = {}

    class Watching(Classification):
        def backward(self, model, images, targets, autocast, scale):
            with autocast():
                seen["dtype"] = (images[:1, 0] @ images[:1, 0]).dtype
            return super().backward(model, images, targets, autocast, scale)

    for amp, dtype in (("none", torch.float32), ("bf16", torch.bfloat16)):
        recipe = replace(RECIPE, epochs=2, cooldown_epochs=0, amp=amp)
        make_trainer(tmp_path / amp, digits, group, recipe, objective=Watching(recipe)).fit()
        assert seen["dtype"] is dtype


def test_scaled_losses_of_fp16_give_the_same_step(tmp_path, digits, group):
    """The scaler divides by what it multiplied; on a CPU as well."""
    trainer = make_trainer(tmp_path, digits, group, replace(PLAIN, amp="fp16"), model=Plain())
    loss = torch.ones((), requires_grad=True)
    assert float(trainer._scale(loss).detach()) == trainer.scaler.get_scale() > 1


def test_torch_compile_is_asked_for(tmp_path, digits, group, monkeypatch):
    """What it makes is PyTorch's affair; that the state dict keeps its keys is ours."""
    asked = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: asked.append(self))
    trainer = make_trainer(tmp_path, digits, group, replace(RECIPE, compile=True))
    assert asked == [trainer.model]
    assert trainer.model.state_dict().keys() == tiny_model().state_dict().keys()


def test_sums_are_ordered_only_while_it_trains(tmp_path, digits, group):
    assert not torch.are_deterministic_algorithms_enabled()
    trainer = make_trainer(tmp_path, digits, group, replace(RECIPE, epochs=2, cooldown_epochs=0))
    during = []
    trainer.fit(lambda what, share: during.append(torch.are_deterministic_algorithms_enabled()))
    assert during
    assert all(during)
    assert not torch.are_deterministic_algorithms_enabled()


def test_an_unknown_optimizer(tmp_path, digits, group):
    with pytest.raises(UnknownNameError, match=r"unknown optimizer 'adamv'\. Did you mean adam"):
        make_trainer(tmp_path, digits, group, replace(RECIPE, optimizer="adamv"))


def test_another_objective(tmp_path, digits, group):
    """Two forward and backward passes a step, as a supernet's sandwich rule does; a model that knows "
    "nothing."""

    class Both:
        def backward(self, model, images, targets, autocast, scale):
            found = {}
            for name, part in (("loss", images), ("flipped_loss", images.flip(3))):
                with autocast():
                    loss = nn.functional.cross_entropy(model(part), targets)
                scale(loss / 2).backward()
                found[name] = float(loss.detach())
            return found

    recipe = replace(PLAIN, epochs=2, cooldown_epochs=0)
    row = make_trainer(tmp_path, digits, group, recipe, model=Plain(), objective=Both()).fit()
    assert {"loss", "flipped_loss", "top1", "ema_top1"} <= row.keys()


def test_the_checkpoint_is_one_that_create_model_reads(tmp_path, digits, group):
    """By the names around its weights: the average of them, or the raw ones."""
    from effv2_kernels.families.efficientformer_v2.weights import load_into, read

    trainer = make_trainer(tmp_path, digits, group, Recipe(**{**RECIPE.as_dict(), "epochs": 2}))
    trainer.fit()
    for weights, expected in (("average", trainer.ema.module), ("raw", trainer.model)):
        model = EfficientFormerV2(trainer.model.architecture, img_size=32, num_classes=10)
        load_into(model, read(tmp_path / "last.pt", weights))
        assert same(model.state_dict(), expected.state_dict()), weights
