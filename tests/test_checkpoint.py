"""Weight files: timm's and the official keys, wrapped or not, and clear words for files that do not fit."""

import argparse
import pickle

import pytest
import torch
from models import randomise, relative_error
from official.model import Official

from effv2_kernels.errors import CheckpointError, ModelError
from effv2_kernels.families.efficientformer_v2 import weights as checkpoint
from effv2_kernels.reference import VARIANTS, create_model

S0 = "efficientformerv2_s0"


@pytest.fixture(scope="module")
def reference_model():
    generator = torch.Generator().manual_seed(torch.seed() % 2**31)
    return randomise(create_model(S0, img_size=64, num_classes=6), generator)


def options(**changes):
    return {"img_size": 64, "num_classes": 6} | changes


def save(content, path):
    torch.save(content, path)
    return path


def same_weights(model, other):
    ours, theirs = model.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"model": state},
        lambda state: {"state_dict": state, "epoch": 300},
        lambda state: {"model": {f"module.{k}": v for k, v in state.items()}},
        lambda state: {f"_orig_mod.module.{k}": v for k, v in state.items()},
        lambda state: {"model": state, "args": argparse.Namespace(epochs=300)},
    ],
    ids=["bare", "model", "state_dict", "module", "compiled_module", "with_options"],
)
def test_wrapped_in_many_ways(wrap, reference_model, tmp_path):
    path = save(wrap(reference_model.state_dict()), tmp_path / "weights.pth")
    model = create_model(S0, checkpoint=path, **options())
    assert same_weights(model, reference_model)
    assert not model.training


def test_safetensors(reference_model, tmp_path):
    files = pytest.importorskip("safetensors.torch")
    path = tmp_path / "weights.safetensors"
    files.save_file(reference_model.state_dict(), path)
    assert same_weights(create_model(S0, checkpoint=path, **options()), reference_model)


def test_timm_file(generator, tmp_path):
    timm = pytest.importorskip("timm")
    theirs = randomise(timm.create_model(S0, **options()), generator)
    path = save(theirs.state_dict(), tmp_path / "weights.pth")
    ours = create_model(S0, checkpoint=path, **options())
    x = torch.randn(1, 3, 64, 64, generator=generator, dtype=torch.float64)
    with torch.inference_mode():
        assert relative_error(ours.double()(x), theirs.double()(x)) < 1e-12


def outputs(model, x):
    model.double()
    model.eval()
    with torch.inference_mode():
        y = model(x.double())
    return y if isinstance(y, list) else [y]


def assert_same(ours, theirs, x):
    expected, actual = outputs(theirs, x), outputs(ours, x)
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        assert relative_error(a, e) < 1e-12


@pytest.mark.parametrize("indices", [True, False], ids=["with_indices", "without_indices"])
def test_official_file(indices, generator, tmp_path):
    theirs = randomise(Official(VARIANTS[S0], resolution=96, num_classes=6), generator)
    state = {k: v for k, v in theirs.state_dict().items() if indices or not k.endswith("attention_bias_idxs")}
    path = save({"model": state}, tmp_path / "official.pth")
    ours = create_model(S0, checkpoint=path, num_classes=6, img_size=96)
    assert_same(ours, theirs, torch.randn(1, 3, 96, 96, generator=generator))


def test_bias_numbered_in_another_order(generator, tmp_path):
    """The stored numbers count, whatever their order."""
    theirs = randomise(Official(VARIANTS[S0], resolution=96, num_classes=6), generator)
    state = dict(theirs.state_dict())
    for key in [k for k in state if k.endswith("attention_biases")]:
        numbers = f"{key.removesuffix('attention_biases')}attention_bias_idxs"
        order = torch.randperm(state[key].shape[1], generator=generator)
        state[key], state[numbers] = state[key][:, order], order.argsort()[state[numbers]]
    ours = create_model(S0, checkpoint=save(state, tmp_path / "w.pth"), num_classes=6, img_size=96)
    assert_same(ours, theirs, torch.randn(1, 3, 96, 96, generator=generator))


@pytest.mark.parametrize("norms", [False, True])
def test_official_features_file(norms, generator, tmp_path):
    theirs = randomise(Official(VARIANTS[S0], resolution=64, fork_feat=True, norms=norms), generator)
    path = save(theirs.state_dict(), tmp_path / "official.pth")
    ours = create_model(S0, checkpoint=path, features_only=True, img_size=64)
    assert_same(ours, theirs, torch.randn(1, 3, 64, 64, generator=generator))


def test_official_detector_file(generator, tmp_path):
    """A whole detector's file: the size is found in it, and images of other sizes work."""
    theirs = randomise(Official(VARIANTS[S0], resolution=128, fork_feat=True, dense=True), generator)
    state = {f"backbone.{key}": value for key, value in theirs.state_dict().items()}
    state["neck.lateral_convs.0.conv.weight"] = torch.zeros(8, 32, 1, 1)
    path = save({"state_dict": state, "meta": {"epoch": 12}}, tmp_path / "detector.pth")
    ours = create_model(S0, checkpoint=path, features_only=True)
    assert ours.img_size == (128, 128)
    for size in ((128, 128), (64, 160)):
        assert_same(ours, theirs, torch.randn(1, 3, *size, generator=generator))


def test_features_of_a_classifiers_file(reference_model, generator, tmp_path):
    path = save(reference_model.state_dict(), tmp_path / "weights.pth")
    features = create_model(S0, checkpoint=path, features_only=True, img_size=64)
    x = torch.randn(1, 3, 64, 64, generator=generator)
    with torch.inference_mode():
        last = features(x)[-1]
        pooled = reference_model.norm(last).mean(dim=(2, 3))
        logits = (reference_model.head(pooled) + reference_model.head_dist(pooled)) / 2
        assert torch.equal(logits, reference_model(x))


def without(*keys):
    return lambda state: {k: v for k, v in state.items() if not k.startswith(keys)}


MISFITS = {
    "missing": (
        without("stages.1.downsample.conv.conv.weight"),
        {},
        r"missing: stages.1.downsample.conv.conv.weight \(1 in all\).*complete",
    ),
    "many_missing": (without("stages.2.blocks.5.mlp"), {}, r"missing: .* and \d+ more \(1\d in all\)"),
    "extra": (lambda s: s | {"stem.conv3.weight": torch.zeros(1)}, {}, "not in the model: stem.conv3.weight"),
    "classes": (
        lambda s: s,
        {"num_classes": 1000},
        r"head.weight \(6, 176\), expected \(1000, 176\).*pass num_classes=6",
    ),
    "resolution": (lambda s: s, {"img_size": 224}, r"attention_biases.*pass img_size=64"),
    "channels": (lambda s: s, {"in_channels": 1}, r"stem.conv1.conv.weight.*pass in_channels=3"),
    "distillation": (without("head_dist"), {}, "pass distillation=False"),
    "no_classifier": (without("head", "norm."), {}, "pass features_only=True"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_a_file_that_does_not_fit(case, reference_model, tmp_path):
    change, changes, message = MISFITS[case]
    path = save(change(reference_model.state_dict()), tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=message) as caught:
        create_model(S0, checkpoint=path, **options(**changes))
    assert str(path) in str(caught.value)


def test_a_file_of_another_variant(reference_model, tmp_path):
    path = save(reference_model.state_dict(), tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="The file is of efficientformerv2_s0: create that model"):
        create_model("efficientformerv2_s1", checkpoint=path, **options())


def test_an_official_key_that_is_unknown_is_named(generator, tmp_path):
    theirs = Official(VARIANTS[S0], resolution=64, num_classes=6)
    state = theirs.state_dict() | {"network.0.0.mlp.fc3.weight": torch.zeros(1)}
    with pytest.raises(
        CheckpointError, match=r"not in the model: stages.0.blocks.0.mlp.fc3.weight \(1 in all\)"
    ):
        create_model(S0, checkpoint=save(state, tmp_path / "w.pth"), **options())


def test_damaged_bias_numbers(tmp_path):
    state = dict(Official(VARIANTS[S0], resolution=64, num_classes=6).state_dict())
    key = next(k for k in state if k.endswith("attention_bias_idxs"))
    state[key] = state[key] + 1000
    with pytest.raises(CheckpointError, match=r"does not number the \d+ values"):
        create_model(S0, checkpoint=save(state, tmp_path / "w.pth"), **options())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.999])
def test_truncated(suffix, share, reference_model, tmp_path):
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(reference_model.state_dict(), path)
    else:
        pytest.importorskip("safetensors.torch").save_file(reference_model.state_dict(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match="truncated or not a"):
        create_model(S0, checkpoint=path, **options())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2, 3], "holds a list, not a state dict"),
        ({"epoch": 3}, "holds no tensors"),
        ({"features.0.weight": torch.zeros(3)}, r"is no EfficientFormerV2.*features.0.weight"),
    ],
)
def test_something_else(content, message, tmp_path):
    with pytest.raises(CheckpointError, match=message):
        create_model(S0, checkpoint=save(content, tmp_path / "other.pth"))


def test_not_a_file(tmp_path):
    with pytest.raises(CheckpointError, match="is not a file"):
        create_model(S0, checkpoint=tmp_path / "nowhere.pth")
    with pytest.raises(CheckpointError, match="is not a file"):
        create_model(S0, checkpoint=tmp_path)
    text = tmp_path / "readme.pth"
    text.write_text("not a checkpoint")
    with pytest.raises(CheckpointError, match="truncated or not a checkpoint"):
        create_model(S0, checkpoint=text)


class Trap:
    """Writes a file if it is ever unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_nothing_in_a_file_is_executed(reference_model, tmp_path):
    sprung = tmp_path / "sprung"
    path = save({"model": reference_model.state_dict(), "extra": Trap(str(sprung))}, tmp_path / "trap.pth")
    with pytest.raises(CheckpointError, match="never loaded"):
        create_model(S0, checkpoint=path, **options())
    assert not sprung.exists()
    bare = tmp_path / "bare.pth"
    bare.write_bytes(pickle.dumps(Trap(str(sprung)), protocol=2))
    with pytest.raises(CheckpointError):
        create_model(S0, checkpoint=bare, **options())
    assert not sprung.exists()


def test_pretrained_fetches_timms_file(reference_model, monkeypatch, tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    path = save(reference_model.state_dict(), tmp_path / "model.pth")
    asked = []

    def download(repo_id, filename):
        asked.append((repo_id, filename))
        return str(path)

    monkeypatch.setattr(hub, "hf_hub_download", download)
    assert same_weights(create_model(S0, pretrained=True, **options()), reference_model)
    assert asked == [("timm/efficientformerv2_s0.snap_dist_in1k", "model.safetensors")]


def test_pretrained_without_a_network(monkeypatch):
    hub = pytest.importorskip("huggingface_hub")

    def download(repo_id, filename):
        raise OSError("no route to host")

    monkeypatch.setattr(hub, "hf_hub_download", download)
    with pytest.raises(CheckpointError, match=r"no route to host.*pass checkpoint="):
        create_model(S0, pretrained=True)


def test_pretrained_and_a_file():
    with pytest.raises(ModelError, match="not both"):
        create_model(S0, pretrained=True, checkpoint="weights.pth")


def test_half_precision_file_is_loaded_in_full(reference_model, tmp_path):
    state = {k: v.half() if v.is_floating_point() else v for k, v in reference_model.state_dict().items()}
    model = create_model(S0, checkpoint=save(state, tmp_path / "half.pth"), **options())
    assert torch.equal(model.head.weight, reference_model.head.weight.half().float())


def test_convert_does_not_change_its_input(generator):
    state = randomise(Official(VARIANTS[S0], resolution=64, num_classes=6), generator).state_dict()
    before = {key: value.clone() for key, value in state.items()}
    checkpoint.convert(state, "these weights")
    assert state.keys() == before.keys()
    assert all(torch.equal(state[key], before[key]) for key in state)
