"""Recipes: the published values, their sources, and values that are none."""

import json
import re
from dataclasses import fields, replace
from pathlib import Path

import pytest

from effv2_kernels.errors import InputError, UnknownNameError
from effv2_kernels.train.recipe import PRESETS, Recipe, sources

PAGE = Path(__file__).resolve().parents[1] / "docs" / "training.md"

# shared/paper.md, "Training as published".
PUBLISHED = {
    "optimizer": "adamw",
    "lr": 1e-3,
    "lr_batch": 1024,
    "batch": 1024,
    "weight_decay": 0.025,
    "warmup_epochs": 5,
    "schedule": "cosine",
    "clip": 0.01,
    "clip_mode": "agc",
    "mixup": 0.8,
    "cutmix": 1.0,
    "auto_augment": "rand-m9-mstd0.5-inc1",
    "erasing": 0.25,
    "smoothing": 0.1,
    "alpha": 0.5,
}


@pytest.mark.parametrize(("preset", "epochs"), [("paper-300", 300), ("paper-450", 450)])
def test_presets_are_what_was_published(preset, epochs):
    values = Recipe.named(preset).as_dict()
    assert {name: values[name] for name in PUBLISHED} == PUBLISHED
    assert values["epochs"] == epochs
    assert all(sources()[name][1].startswith("paper") for name in PUBLISHED)


def test_every_entry_says_where_it_is_from():
    for name, (_, source) in sources().items():
        assert re.match(r"(paper|code|timm|here)\b", source), name


def test_the_page_has_every_entry_with_its_value_and_source():
    text = PAGE.read_text(encoding="utf-8")
    for name, (value, source) in sources().items():
        (row,) = re.findall(rf"^\| `{name}` \|(.*)\|(.*)\|$", text, re.MULTILINE)
        assert str(value).lower() in row[0].lower().strip(), name
        assert row[1].strip().startswith(re.match(r"\w+", source)[0]), name


@pytest.mark.parametrize("end", ["s0", "s1", "s2", "l"])
def test_published_drop_path(end):
    expected = {"s0": 0.0, "s1": 0.0, "s2": 0.02, "l": 0.1}[end]
    assert Recipe().drop_path_of(f"efficientformerv2_{end}") == expected
    assert Recipe(drop_path=0.05).drop_path_of(f"efficientformerv2_{end}") == 0.05


def test_values_from_text():
    recipe = Recipe().changed({"epochs": "7", "lr": "5e-4", "compile": "true", "auto_augment": ""})
    assert recipe == replace(Recipe(), epochs=7, lr=5e-4, compile=True, auto_augment="")
    assert json.loads(recipe.json()) == recipe.as_dict()
    assert Recipe(**json.loads(recipe.json())) == recipe


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"epohcs": "7"}, "unknown entry of a recipe 'epohcs'. Did you mean 'epochs'"),
        ({"epochs": "seven"}, "epochs is a whole number, but got 'seven'"),
        ({"lr": "fast"}, "lr is a number, but got 'fast'"),
        ({"compile": "1"}, "compile is true or false, but got '1'"),
        ({"epochs": "0"}, "epochs must be at least 1, but is 0"),
        ({"batch": "-1"}, "batch must be at least 1"),
        ({"epochs": "4"}, "5 warm-up epochs of 4 epochs leave none"),
        ({"repeats": "-1"}, "repeats must not be negative"),
        ({"lr": "0"}, "lr must be positive, but is 0.0"),
        ({"lr": "nan"}, "lr must be positive, but is nan"),
        ({"lr": "inf"}, "lr must be finite, but is inf"),
        ({"mixup": "inf"}, "mixup must be finite, but is inf"),
        ({"weight_decay": "nan"}, "weight_decay must not be negative, but is nan"),
        ({"drop_path": "-inf"}, "drop_path must be finite, but is -inf"),
        ({"batch": "9" * 400}, "batch must be at most 2147483647"),
        ({"epochs": "9" * 20}, "epochs must be at most 2147483647, but is 99999999999999999999"),
        ({"seed": "9" * 20}, "seed must be at most 9223372036854775807"),
        ({"seed": "-1"}, "seed must not be negative, but is -1"),
        ({"clip": "-1"}, "clip must not be negative"),
        ({"erasing": "1.5"}, "erasing must be in 0 ... 1, but is 1.5"),
        ({"smoothing": "1"}, "smoothing must be at least 0 and below 1, but is 1.0"),
        ({"crop": "0"}, "crop must be above 0 and at most 1, but is 0.0"),
        ({"drop_path": "1"}, "drop_path must be below 1"),
        ({"amp": "fp8"}, "amp is one of none, bf16, fp16, but is 'fp8'"),
        ({"clip_mode": "hard"}, "clip_mode is one of agc, norm, value"),
        ({"schedule": "cosin"}, "schedule is one of cosine, poly, tanh, step, but is 'cosin'"),
    ],
)
def test_values_that_are_none(settings, words):
    with pytest.raises((InputError, UnknownNameError), match=re.escape(words)):
        Recipe().changed(settings)


def test_an_unknown_preset():
    with pytest.raises(UnknownNameError, match=r"unknown recipe 'paper-30'\. Did you mean 'paper-300'"):
        Recipe.named("paper-30")


def test_parts_of_a_batch():
    assert Recipe().micro_batch(8) == 128
    assert replace(Recipe(), accumulation=4).micro_batch(8) == 32
    with pytest.raises(InputError, match="a batch of 1024 does not divide into 3 processes x 1 parts"):
        Recipe().micro_batch(3)
    odd = replace(Recipe(), batch=3)
    with pytest.raises(InputError, match="of an even number of images, which mixup and cutmix need"):
        odd.micro_batch(1)
    assert replace(odd, mixup=0.0, cutmix=0.0).micro_batch(1) == 3


def test_no_preset_hides_a_change():
    """finetune is chosen here; what it shares with the paper is not repeated."""
    assert set(PRESETS) == {"paper-300", "paper-450", "finetune"}
    differing = {e.name for e in fields(Recipe) if getattr(PRESETS["finetune"], e.name) != e.default}
    assert differing == {
        "epochs",
        "lr",
        "min_lr",
        "warmup_epochs",
        "cooldown_epochs",
        "repeats",
        "ema_decay",
    }
