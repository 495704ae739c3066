"""Architectures as JSON files, and models of them."""

import json

import pytest
import torch
from checks import one_torch_thread, seeded

import effv2_kernels
from effv2_kernels.errors import ModelError
from effv2_kernels.families import mobilenet_v2, sizes
from effv2_kernels.families.efficientformer_v2 import VARIANTS, Architecture, EfficientFormerV2


@pytest.fixture(autouse=True)
def one_thread():
    with one_torch_thread():
        yield


SMALL = Architecture((16, 24, 40, 56), (1, 0, 2, 2), (1, 3.3, (2, 2.5), 4), 1)
WRITTEN = """{
  "widths": [16, 24, 40, 56],
  "depths": [1, 0, 2, 2],
  "ratios": [[1], [], [2, 2.5], [4, 4]],
  "attention_blocks": [1, 1]
}
"""


def test_text():
    assert SMALL.to_json() == WRITTEN


def test_sizes_are_equal_where_networks_are(tmp_path):
    """However they are given: the architecture, its canonical form, or a file of either."""
    SMALL.save(tmp_path / "architecture.json")
    for given in (SMALL, SMALL.canonical(), tmp_path / "architecture.json"):
        assert sizes(given) == json.loads(WRITTEN)
    other = mobilenet_v2.VARIANTS["mobilenetv2_100"]
    assert sizes(other)["stem"] == 32
    assert sizes(other) != sizes(mobilenet_v2.VARIANTS["mobilenetv2_140"])
    with pytest.raises(ModelError, match="architecture must be"):
        sizes(3)


@pytest.mark.parametrize("architecture", [SMALL, *VARIANTS.values()], ids=["small", *VARIANTS])
def test_there_and_back(architecture, tmp_path):
    canonical = architecture.canonical()
    assert canonical.canonical() == canonical
    assert canonical.block_ratios() == architecture.block_ratios()
    assert canonical.late_attention() == architecture.late_attention()
    assert Architecture.from_json(architecture.to_json()) == canonical
    architecture.save(tmp_path / "architecture.json")
    read = Architecture.read(tmp_path / "architecture.json")
    assert read == canonical
    assert hash(read) == hash(canonical)


def test_short_forms_are_read():
    text = (
        '{"widths": [8, 8, 8, 8], "depths": [1, 1, 2, 1], "ratios": [4, 3, [2, 3], 1], "attention_blocks": 2}'
    )
    assert Architecture.from_json(text) == Architecture(
        (8, 8, 8, 8), (1, 1, 2, 1), ((4.0,), (3.0,), (2.0, 3.0), (1.0,)), (2, 1)
    )


def changed(**fields):
    data = json.loads(WRITTEN)
    data.update(fields)
    return json.dumps({name: value for name, value in data.items() if value is not None})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no JSON object"),
        ("[1, 2]", "is no JSON object"),
        ('{"widths": [1', "is no JSON object"),
        ('{"widths": NaN}', "is no JSON object"),
        (changed(widths=None), "lacks 'widths'"),
        (changed(width=[8]), "has 'width', and known are widths, depths"),
        (changed(widths="wide"), 'widths of the architecture must be a list, but is "wide"'),
        (changed(widths=[16, 24, 40]), "must have 4 entries, but has 3"),
        (
            changed(widths=[16, 24, 40.5, 56]),
            "each of widths of the architecture must be an integer, but is 40.5",
        ),
        (changed(depths=[1, 0, True, 2]), "must be an integer, but is true"),
        (changed(ratios=[4, 4, 4]), "ratios of the architecture must have 4 entries"),
        (changed(ratios="four"), "must be a number"),
        (changed(ratios=[[1], [], [2], [4, 4]]), "the architecture: stage 3 needs 2 expansion ratios"),
        (changed(ratios=[[1], [], [2, "3"], [4, 4]]), 'must be a number, but is "3"'),
        (changed(attention_blocks=[1]), "must have 2 entries"),
        (changed(attention_blocks=[3, 1]), "the architecture: stage 3 has 2 blocks"),
        (changed(widths=[15, 24, 40, 56]), "the first one even"),
        (changed(widths=[16, 24, 40, 10**400]), "must be an integer below 2^31"),
        (changed(widths=[16, 24, 40, 10**6]), "at most 65536 channels and 1024 blocks"),
        (changed(depths=[1, 0, 2, 10**9]), "at most 65536 channels and 1024 blocks"),
        (changed(ratios=10**400), "must be a finite number"),
        (changed(ratios=7).replace("7", "1e400"), "a finite number, but is Infinity"),
        (changed(ratios=1e30), "at least one hidden channel, and at most 1048576"),
    ],
)
def test_what_is_no_architecture(text, message):
    with pytest.raises(ModelError) as raised:
        Architecture.from_json(text)
    assert message in str(raised.value)
    assert "the architecture" in str(raised.value)


@pytest.mark.parametrize("ratio", [float("nan"), float("inf"), 10**400, -1.0])
def test_ratios_that_are_none(ratio):
    with pytest.raises(ModelError, match="stage 1 needs 1 expansion ratios"):
        Architecture((16, 24, 40, 56), (1, 1, 1, 1), ratio)


def test_files_as_windows_saves_them(tmp_path):
    """With a byte-order mark, and ends of lines of their own."""
    text = json.dumps(json.loads(SMALL.to_json()), indent=1).replace("\n", "\r\n")
    (tmp_path / "architecture.json").write_bytes(("\ufeff" + text).encode())
    assert Architecture.read(tmp_path / "architecture.json") == Architecture.from_json(text)


def test_files_that_hold_none(tmp_path):
    with pytest.raises(ModelError, match=r"absent\.json' cannot be read: No such file"):
        Architecture.read(tmp_path / "absent.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ModelError, match=r"binary\.json' is no text"):
        Architecture.read(tmp_path / "binary.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ModelError, match=r"list\.json' is no JSON object"):
        Architecture.read(tmp_path / "list.json")
    with pytest.raises(ModelError, match="cannot write"):
        SMALL.save(tmp_path / "no_folder" / "architecture.json")


@pytest.mark.parametrize("form", ["itself", "file", "text of its path"])
def test_models_of_an_architecture(form, tmp_path):
    path = tmp_path / "architecture.json"
    SMALL.save(path)
    given = {"itself": SMALL, "file": path, "text of its path": str(path)}[form]
    model = effv2_kernels.create_model(
        architecture=given, num_classes=3, img_size=(32, 40), in_channels=1, distillation=False
    )
    assert isinstance(model, EfficientFormerV2)
    assert not model.training
    assert model.architecture.canonical() == SMALL.canonical()
    x = torch.randn(2, 1, 32, 40, generator=seeded(1))
    assert model(x).shape == (2, 3)

    torch.save(model.state_dict(), tmp_path / "weights.pth")
    again = effv2_kernels.create_model(
        architecture=given,
        checkpoint=tmp_path / "weights.pth",
        num_classes=3,
        img_size=(32, 40),
        in_channels=1,
        distillation=False,
    )
    torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)


def test_models_of_another_family():
    model = effv2_kernels.create_model(architecture=mobilenet_v2.scaled(0.1), num_classes=3)
    assert isinstance(model, mobilenet_v2.MobileNetV2)
    with pytest.raises(ModelError, match="MobileNetV2 has no classifier for distillation"):
        effv2_kernels.create_model(architecture=mobilenet_v2.scaled(0.1), distillation=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "but neither is given"),
        ({"name": "efficientformerv2_s0", "architecture": SMALL}, "but both is given"),
        ({"architecture": 5}, "is of type int"),
        ({"architecture": SMALL, "pretrained": True}, "published weights for names alone"),
    ],
)
def test_requests_for_no_model(options, message):
    with pytest.raises(ModelError, match=message):
        effv2_kernels.create_model(**options)
