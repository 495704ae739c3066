"""``explain`` and ``profile``: every block with what runs it, and whose numbers add up."""

import math
from itertools import pairwise

import pytest
import torch
from checks import seeded
from models import SMALL
from torch import nn

from effv2_kernels import cpu, explain, optimize, profile, tune
from effv2_kernels.errors import InputError, ModelError, ResolutionError
from effv2_kernels.reference import VARIANTS, EfficientFormerV2

SPEC = SMALL[0]  # 64x64, widths 16 24 40 56


@pytest.fixture(scope="module")
def model():
    return SPEC.build(seeded(60))


@pytest.fixture(scope="module")
def fast(model):
    return optimize(model)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((64, 64, 64), r"rows and columns, or one number for both, but got \(64, 64, 64\)"),
        ("64", "must be a whole number, but got '64'"),
        ((64, 64.0), "columns of size must be a whole number, but got 64.0"),
    ],
)
def test_a_size_that_is_none(fast, size, message):
    with pytest.raises(InputError, match=message):
        explain(fast, size)


def test_what_is_no_module():
    for call in (explain, lambda what: tune(what, None)):
        with pytest.raises(ModelError, match="str holds nothing that was optimised"):
            call("a model")


def test_every_block_of_a_network(fast):
    explanation = explain(fast)
    rows = explanation.rows
    assert [row.block for row in rows] == [
        *("stem", "ffn", "conv", "ffn", "conv", "ffn", "attention", "ffn"),
        *("attention_downsample", "ffn", "attention", "ffn", "head"),
    ]
    assert [row.source for row in rows[:4]] == [
        "stem",
        "stages.0.blocks.0.mlp",
        "stages.1.downsample",
        "stages.1.blocks.0.mlp",
    ]
    assert {(row.backend, row.isa, row.dtype) for row in rows} == {("cpu", cpu.default_isa(), "fp32")}
    assert rows[0].input == (3, 64, 64)
    assert rows[-1].output == (10,)
    for before, after in pairwise(rows):
        assert before.output == after.input
    assert not explanation.left


def test_names_lead_to_modules_of_the_source(model, fast):
    for row in explain(fast).rows:
        assert isinstance(model.get_submodule(row.source), nn.Module)


def test_gflop_and_bytes_are_those_of_the_arithmetic(fast):
    rows = {row.source: row for row in explain(fast).rows}
    # two for each multiply-add: 3x3 convolutions of 3 to 8 channels on 32x32, of 8 to 16 on 16x16
    assert rows["stem"].gflop == pytest.approx(2e-9 * (32 * 32 * 8 * 27 + 16 * 16 * 16 * 72))
    hidden = 48
    assert rows["stages.0.blocks.0.mlp"].gflop == pytest.approx(2e-9 * 16 * 16 * hidden * (16 + 9 + 16))
    assert rows["stages.0.blocks.0.mlp"].bytes == 4 * (hidden * (16 + 1 + 9 + 1 + 16) + 16)
    assert rows["head"].bytes == 4 * (10 * 56 + 10)
    assert explain(fast).bytes == sum(t.nbytes for t in fast.state_dict().values())


def test_totals_of_a_published_network():
    """0.396 GMAC at 224, as counted on the model itself."""
    with torch.device("cpu"):
        fast = optimize(EfficientFormerV2(VARIANTS["efficientformerv2_s0"]).eval())
    explanation = explain(fast)
    assert explanation.rows[0].input == (3, 224, 224)
    assert explanation.gflop == pytest.approx(0.792, rel=0.01)


def test_the_table(fast):
    text = str(explain(fast))
    lines = text.splitlines()
    assert lines[0] == f"OptimizedModel: backend cpu in fp32; ISA {fast.choice.isa}: {fast.choice.why}"
    assert lines[1].startswith("verified: relative error ")
    assert lines[2].split() == [
        "block",
        "source",
        "backend",
        "ISA",
        "dtype",
        "input",
        "output",
        "GFLOP",
        "MB",
    ]
    assert len(lines) == 4 + 13 + 1
    assert any("attention_downsample" in line and "40x4x4" in line and "56x2x2" in line for line in lines)
    assert lines[-1].split()[0] == "total"
    assert f"{explain(fast).gflop:.4f}" in lines[-1]
    assert max(map(len, lines[2:])) < 130


def test_an_asked_isa_is_named(model):
    explanation = explain(optimize(model, isa="scalar"))
    assert {row.isa for row in explanation.rows} == {"scalar"}
    assert "scalar: asked for" in explanation.why[0]


def test_sizes():
    g = seeded(61)
    fast = optimize(SPEC.build(g, features_only=True, resize_bias=True))
    assert explain(fast).rows[0].input == (3, 224, 224)
    assert explain(fast, 96).rows[0].input == (3, 96, 96)
    assert explain(fast, (64, 128)).rows[-1].output == (56, 2, 4)
    assert explain(fast, 128).gflop > explain(fast, 64).gflop * 3.5
    fast(torch.zeros(1, 3, 80, 48))
    assert explain(fast).rows[0].input == (3, 80, 48)


def test_a_size_that_does_not_fit(fast):
    with pytest.raises(ResolutionError, match="this one is 96x96"):
        explain(fast, 96)


def test_what_is_left_in_pytorch_is_named(model):
    class Larger(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = model
            self.neck = nn.Sequential(nn.Conv2d(10, 4, 1), nn.ReLU())
            self.scale = nn.Parameter(torch.ones(3))
            self.act = nn.ReLU()
            self.eval()

    explanation = explain(optimize(Larger()))
    left = {part.path: part for part in explanation.left}
    assert set(left) == {"", "neck"}
    assert left["neck"].class_name == "Sequential"
    assert left["neck"].bytes == 4 * 44
    assert "not part of an EfficientFormerV2" in left["neck"].reason
    assert left[""].bytes == 12
    assert explanation.rows[1].source == "backbone.stages.0.blocks.0.mlp"
    text = str(explanation)
    assert "Left in PyTorch:" in text
    assert "'backbone': backend cpu" in text


def test_parts_that_were_left_out_say_why(model):
    hooked = SPEC.build(seeded(62))
    hooked.stages[1].blocks[0].register_forward_hook(lambda *a: None)
    explanation = explain(optimize(hooked, strict=False))
    reasons = {part.path: part.reason for part in explanation.left}
    assert "hooks" in reasons["stages.1.blocks"]
    assert {row.source for row in explanation.rows} >= {"stem", "stages.0.blocks.0", "stages.3.blocks.1"}


def test_parts_of_unknown_size(model):
    """Until they are called, parts without a stem and a bias show no sizes that would be made up."""
    g = seeded(67)
    fast = optimize(
        nn.ModuleDict({"a": SPEC.build(g).stages[0].blocks[0], "b": SPEC.build(g).stem}).eval(), strict=False
    )
    explanation = explain(fast)
    assert explanation.rows[0].input == explanation.rows[0].output == (16,)
    assert math.isnan(explanation.rows[0].gflop)
    assert explanation.gflop == explanation.rows[1].gflop
    assert "?" in str(explanation)
    fast["a"](torch.zeros(1, 16, 9, 7))
    assert explain(fast).rows[0].output == (16, 9, 7)
    assert "?" not in str(explain(fast))


def test_nothing_to_explain(model):
    with pytest.raises(
        ModelError, match=r"EfficientFormerV2 holds nothing that was optimised: give what optimize"
    ):
        explain(model)


@pytest.mark.alone
def test_profile_times_every_block(fast):
    images = SPEC.images(seeded(63), 3)
    found = profile(fast, images, repeats=3, warmup=1)
    explained = explain(fast).rows
    assert [(row.block, row.source) for row in found.rows] == [(row.block, row.source) for row in explained]
    for row, one_image in zip(found.rows, explained, strict=True):
        assert row.milliseconds > 0
        assert row.gflop == pytest.approx(3 * one_image.gflop)
        assert row.gflops == pytest.approx(row.gflop / row.milliseconds * 1e3)
        assert 0 < found.share_of_peak(row) < 2
    assert found.batch == 3
    assert found.isa == cpu.default_isa()
    assert found.threads == min(torch.get_num_threads(), cpu.native().usable_cpus())
    assert found.peak_gflops > 1
    assert found.milliseconds == pytest.approx(sum(row.milliseconds for row in found.rows))
    total = str(found).splitlines()[-1].split()
    assert total[:3] == ["total", "13", "blocks"]
    assert total[4] == "100.0%"
    assert math.isclose(float(total[3]), found.milliseconds, abs_tol=1e-3)


def test_profile_gives_no_other_result(fast):
    """The timed run computes the same as the plain one."""
    images = SPEC.images(seeded(64), 2)
    expected = fast(images)
    outputs = [torch.full((2, 10), torch.nan)]
    engine = fast.engine
    engine._network.profile(images.data_ptr(), images.shape, images.stride(), [outputs[0].data_ptr()], 2)
    assert torch.equal(outputs[0], expected)


@pytest.mark.parametrize(
    ("options", "message"), [({"repeats": 0}, "repeats must be"), ({"warmup": -1}, "warmup")]
)
def test_profile_refuses_counts_that_mean_nothing(fast, options, message):
    with pytest.raises(InputError, match=message):
        profile(fast, SPEC.images(seeded(65)), **options)


def test_profile_refuses_other_modules_and_images(model, fast):
    with pytest.raises(
        ModelError, match=r"profile\(\) takes what optimize\(\) returned, but got EfficientFormerV2"
    ):
        profile(model, SPEC.images(seeded(66)))
    with pytest.raises(InputError, match="rank 4"):
        profile(fast, SPEC.images(seeded(66))[0])
