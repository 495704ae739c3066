"""Files whose weights of products are stored in 16 bits: half the size, the same values on any machine."""

import pytest
import torch
from checks import saved_content as content
from checks import seeded
from models import FAMILIES, SMALL, name_of

from effv2_kernels import __main__, load, optimize, save
from effv2_kernels.errors import CheckpointError, ModelError, UnknownNameError

safetensors = pytest.importorskip("safetensors.torch")

SPEC = SMALL[0]

# By the names of their fields: what is multiplied with maps, and summed over channels.
OPERANDS = {
    "stem": {"conv1_weight", "conv2_weight"},
    "ffn": {"fc1_weight", "fc2_weight"},
    "attention": {"qkv_weight", "proj_weight"},
    "conv": {"weight"},
    "attention_downsample": {"q_weight", "kv_weight", "proj_weight", "conv_weight"},
    "head": {"weight"},
}


@pytest.fixture(scope="module")
def fast():
    return optimize(SPEC.build(seeded(170)))


@pytest.fixture
def path(fast, tmp_path):
    path = tmp_path / "network.effv2"
    save(fast, path, dtype="fp16")
    return path


def same(one, other):
    """Whether two files hold the same; the order of their metadata is of no account, and varies."""
    (metadata, tensors), (others, other_tensors) = content(one), content(other)
    return (
        metadata == others
        and tensors.keys() == other_tensors.keys()
        and all(t.dtype is other_tensors[key].dtype for key, t in tensors.items())
        and all(torch.equal(t, other_tensors[key]) for key, t in tensors.items())
    )


def test_what_is_stored_in_16_bits(path, fast):
    metadata, tensors = content(path)
    assert (metadata["version"], metadata["dtype"]) == ("2", "fp16")
    kinds = [block.kind for block in fast.network.blocks]
    assert set(kinds) == set(OPERANDS)
    for key, tensor in tensors.items():
        _, block, name = key.split(".")
        half = name in OPERANDS[kinds[int(block)]]
        assert tensor.dtype is (torch.float16 if half else torch.float32), key


@pytest.mark.parametrize("spec", FAMILIES, ids=name_of)
def test_loads_exactly_what_is_stored(spec, tmp_path):
    """Any machine can write and read it: the network runs in fp32, with rounded weights."""
    g = seeded(171)
    fast, images = optimize(spec.build(g)), spec.images(g, 2)
    save(fast, tmp_path / "half.effv2", dtype="fp16")
    save(fast, tmp_path / "full.effv2")
    assert (tmp_path / "half.effv2").stat().st_size < 0.75 * (tmp_path / "full.effv2").stat().st_size
    loaded = load(tmp_path / "half.effv2")
    _, tensors = content(tmp_path / "half.effv2")
    rounded = 0
    for key, weight in loaded.state_dict().items():
        assert weight.dtype is torch.float32
        assert torch.equal(weight, tensors[key].float())
        assert torch.equal(weight, fast.state_dict()[key].to(tensors[key].dtype).float())
        rounded += not torch.equal(weight, fast.state_dict()[key])
    assert rounded > len(fast.network.blocks)
    error = (loaded(images) - fast(images)).norm() / fast(images).norm()
    assert 0 < error < 2e-2


def test_a_file_in_fp32_stays_version_1(fast, tmp_path):
    save(fast, tmp_path / "a.effv2")
    save(fast, tmp_path / "b.effv2", dtype="fp32")
    metadata, _ = content(tmp_path / "a.effv2")
    assert metadata.keys() == {"format", "version", "structure", "returns"}
    assert metadata["version"] == "1"
    assert same(tmp_path / "a.effv2", tmp_path / "b.effv2")


def test_rounding_twice_changes_nothing(path, tmp_path):
    save(load(path), tmp_path / "again.effv2", dtype="fp16")
    assert same(tmp_path / "again.effv2", path)


@pytest.mark.parametrize("value", [65520.0, -1e6])
def test_weights_that_do_not_fit(value, tmp_path):
    fast = optimize(SPEC.build(seeded(172)))
    with torch.no_grad():
        fast.state_dict()["blocks.1.fc2_weight"][3, 5] = value
    with pytest.raises(
        ModelError, match=r"fc2_weight of block 1 has a weight of magnitude .* fp16 ends at 65504"
    ):
        save(fast, tmp_path / "a.effv2", dtype="fp16")
    assert not (tmp_path / "a.effv2").exists()
    save(fast, tmp_path / "a.effv2")


@pytest.mark.parametrize("dtype", ["bf16", "int8", "float16", ""])
def test_dtypes_that_files_do_not_have(fast, tmp_path, dtype):
    with pytest.raises(UnknownNameError, match=r"unknown dtype of a file .*Known: fp32, fp16"):
        save(fast, tmp_path / "a.effv2", dtype=dtype)


@pytest.mark.parametrize("dtype", [None, "fp32", "bf16", ""])
def test_version_2_is_for_fp16(path, dtype):
    metadata, tensors = content(path)
    metadata = {key: value for key, value in metadata.items() if key != "dtype"}
    safetensors.save_file(tensors, path, metadata=metadata if dtype is None else {**metadata, "dtype": dtype})
    with pytest.raises(CheckpointError, match=r"has (no dtype|dtype .*); expected 'fp16'"):
        load(path)


@pytest.mark.parametrize(
    ("key", "wrong"),
    [
        ("blocks.1.fc2_weight", torch.float32),
        ("blocks.1.dw_weight", torch.float16),
        ("blocks.6.mix1_weight", torch.float16),
        ("blocks.6.mix2_weight", torch.float16),
        ("blocks.6.bias", torch.float16),
        ("blocks.0.conv1_bias", torch.float16),
    ],
)
def test_another_number_of_bits(path, key, wrong):
    metadata, tensors = content(path)
    tensors[key] = tensors[key].to(wrong)
    safetensors.save_file(tensors, path, metadata=metadata)
    with pytest.raises(CheckpointError, match=rf"{key} is {wrong}; expected torch"):
        load(path)


def test_the_command(tmp_path, capsys):
    sizes = []
    for dtype in ("fp32", "fp16"):
        file = tmp_path / f"{dtype}.effv2"
        assert __main__.main(["convert", str(file), "--img-size", "64", "--dtype", dtype]) == 0
        assert "MB" in capsys.readouterr().out
        metadata, _ = content(file)
        assert metadata.get("dtype", "fp32") == dtype
        sizes.append(file.stat().st_size)
    assert sizes[1] < 0.6 * sizes[0]
