"""No bad file gets in by ``load``: truncated, other programs', tensors and descriptions that do not fit."""

import json
import os
import re
import struct
import subprocess
import sys

import pytest
import saved_network
import torch
from checks import saved_content as content
from checks import seeded
from saved_network import SPEC

from effv2_kernels import container, load, structure
from effv2_kernels.errors import CheckpointError, ModelError

safetensors = pytest.importorskip("safetensors.torch")

fast, path = saved_network.fast, saved_network.path  # fixtures


def write(path, metadata, tensors):
    safetensors.save_file(tensors, path, metadata=metadata)


def changed_structure(metadata, change):
    """The metadata with its JSON changed in place by ``change(data)``."""
    data = json.loads(metadata["structure"])
    change(data)
    return {**metadata, "structure": json.dumps(data)}


@pytest.mark.parametrize("share", [0.0, 1e-4, 0.01, 0.5, 0.999])
def test_a_truncated_file(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(CheckpointError, match=r"network.effv2 is truncated or not a safetensors file"):
        load(path)


@pytest.mark.parametrize(
    "data", [b"not a checkpoint", b"\x80\x04\x95", b"PK\x03\x04" + b"\0" * 100, b"\xff" * 64]
)
def test_not_a_checkpoint(path, data):
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="is truncated or not a safetensors file"):
        load(path)


def test_a_header_that_promises_too_much(path):
    """A length of 2^63 must not be allocated."""
    path.write_bytes(struct.pack("<Q", 2**63) + b"{}")
    with pytest.raises(CheckpointError, match="is truncated or not a safetensors file"):
        load(path)


def test_a_pickle_is_not_read(path, fast):
    torch.save(fast.state_dict(), path)
    with pytest.raises(CheckpointError, match="is truncated or not a safetensors file"):
        load(path)


def test_no_file(tmp_path):
    with pytest.raises(CheckpointError, match=r"there is no file .*missing.effv2"):
        load(tmp_path / "missing.effv2")


# One that waits for who writes into a pipe would wait for ever.
IRREGULAR = """
import sys
from effv2_kernels import load
from effv2_kernels.errors import CheckpointError

for path in sys.argv[1:]:
    try:
        load(path)
    except CheckpointError as error:
        print(error)
"""


def test_what_is_no_regular_file(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    paths = [str(path) for path in (pipe, tmp_path, "/dev/zero")]
    command = [sys.executable, "-c", IRREGULAR, *paths]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    for path, message in zip(paths, done.stdout.splitlines(), strict=True):
        assert message.startswith(f"cannot read {path}: it is no regular file; give a file that")


def test_a_file_that_may_not_be_read(path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(container.os, "open", refuse)
    with pytest.raises(CheckpointError, match=rf"cannot read {path}: Permission denied; give a file that"):
        load(path)


@pytest.mark.parametrize("more", [b"\0", b"\0" * 4, b"one more tensor"])
def test_bytes_behind_the_last_tensor(path, more):
    load(path)
    path.write_bytes(path.read_bytes() + more)
    reason = r"its tensors end at byte \d+ of \d+"
    with pytest.raises(CheckpointError, match=rf"is truncated or not a safetensors file \({reason}\)"):
        load(path)


def test_a_checkpoint_of_a_model(path, fast):
    safetensors.save_file(dict(SPEC.build(seeded(76)).state_dict()), path)
    with pytest.raises(CheckpointError, match=r"was not written by effv2_kernels.save\(\).*create_model"):
        load(path)


def test_another_version(path):
    metadata, tensors = content(path)
    for version in ("3", "1.0", ""):
        write(path, {**metadata, "version": version}, tensors)
        with pytest.raises(
            CheckpointError,
            match=rf"has version '{version}' of the format, and this package reads versions '1' and '2'",
        ):
            load(path)


def test_no_version_and_no_dtype(path):
    metadata, tensors = content(path)
    for changed, message in (
        ({"version": None}, "has no version of the format, and this package reads"),
        ({"version": "2"}, "has no dtype; expected 'fp16' in version '2'. Save the model again, or"),
        ({"version": "2", "dtype": "fp8"}, "has dtype 'fp8'; expected 'fp16' in version '2'"),
    ):
        kept = {key: value for key, value in {**metadata, **changed}.items() if value is not None}
        write(path, kept, tensors)
        with pytest.raises(CheckpointError, match=message):
            load(path)


def test_missing_and_extra_tensors(path):
    metadata, tensors = content(path)
    tensors["blocks.0.conv3_weight"] = tensors.pop("blocks.0.conv1_weight")
    write(path, metadata, tensors)
    with pytest.raises(
        CheckpointError, match=r"missing blocks.0.conv1_weight; unexpected blocks.0.conv3_weight"
    ):
        load(path)


KEYS = [
    "blocks.0.conv1_weight",
    "blocks.0.conv1_bias",
    "blocks.1.fc2_bias",
    "blocks.6.bias",
    "blocks.6.qkv_weight",
    "blocks.6.local_bias",
    "blocks.8.conv_weight",
    "blocks.12.bias",
]


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(
    "spoil", [lambda t: t[:-1].clone(), lambda t: torch.cat([t, t]), lambda t: t[None].clone()]
)
def test_misshapen_tensors(path, key, spoil):
    metadata, tensors = content(path)
    tensors[key] = spoil(tensors[key])
    write(path, metadata, tensors)
    name = key.rpartition(".")[2].partition("_")[0]
    with pytest.raises(CheckpointError, match=rf"does not describe a network.*{name}.* has shape .*expected"):
        load(path)


def test_tensors_of_another_dtype(path):
    metadata, tensors = content(path)
    tensors["blocks.1.fc2_bias"] = tensors["blocks.1.fc2_bias"].half()
    write(path, metadata, tensors)
    with pytest.raises(CheckpointError, match=r"fc2_bias is torch.float16; expected torch.float32"):
        load(path)


@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_tensors_that_are_not_finite(path, value):
    metadata, tensors = content(path)
    tensors["blocks.1.fc2_bias"][3] = value
    write(path, metadata, tensors)
    with pytest.raises(CheckpointError, match=r"'blocks.1.fc2_bias' holds values that are not finite"):
        load(path)


def first(data):
    return data["blocks"][0]


def attention(data):
    return data["blocks"][6]


STRUCTURES = {
    "no blocks": lambda data: data.update(blocks=[]),
    "blocks of another type": lambda data: data.update(blocks={"kind": "stem"}),
    "no list": lambda data: data.update(blocks=3),
    "an unknown kind": lambda data: first(data).update(kind="conv9x9"),
    "a kind that is no string": lambda data: first(data).update(kind=["stem"]),
    "a missing field": lambda data: first(data)["tensors"].remove("conv1_bias"),
    "an unknown field": lambda data: first(data)["tensors"].append("conv3_bias"),
    "a field twice": lambda data: first(data)["tensors"].append("conv1_bias"),
    "a tensor for an option": lambda data: attention(data)["options"].update(heads="8"),
    "an option for a tensor": lambda data: (
        first(data)["tensors"].remove("conv1_bias"),
        first(data)["options"].update(conv1_bias=1),
    ),
    "no heads": lambda data: attention(data)["options"].update(heads=0),
    "negative sizes": lambda data: attention(data)["options"].update(heads=-8, key_dim=-32),
    "overflowing sizes": lambda data: attention(data)["options"].update(heads=2**62),
    "an unknown stride": lambda data: attention(data)["options"].update(stride=3),
    "blocks in another order": lambda data: data["blocks"].reverse(),
    "features beside a head": lambda data: data.update(features=[{"block": 1, "scaled": False}]),
    "a feature of no block": lambda data: data.update(features=[{"block": 99, "scaled": False}]),
    "no source": lambda data: data.pop("source"),
    "a name that is no string": lambda data: first(data).update(name=3),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_descriptions_that_cannot_be_run(path, name):
    metadata, tensors = content(path)
    write(path, changed_structure(metadata, STRUCTURES[name]), tensors)
    with pytest.raises(
        CheckpointError, match=r"does not (describe a network that can be run|hold the tensors)"
    ):
        load(path)


# What is wrong, what there is, and what to do; nothing of Python's own.
REASONS = {
    "blocks of another type": r"'blocks' is {.*}, and no list",
    "an unknown kind": r"block 0 is of the kind 'conv9x9', and known are stem, .*conv_downsample; use a",
    "a kind that is no string": r"the kind of block 0 is \[\"stem\"\], and no string",
    "a missing field": r"block 0 \(stem\) lacks the tensor 'conv1_bias'",
    "an unknown field": r"block 0 \(stem\) has the tensor 'conv3_bias', and known are conv1_weight",
    "a field twice": r"block 0 \(stem\) has the tensor 'conv1_bias' twice",
    "a tensor for an option": r"the option 'heads' of block 6 \(attention\) is '8', and not an integer",
    "an option for a tensor": r"block 0 \(stem\) has the option 'conv1_bias', and known are",
    "no source": "the description lacks 'source'",
    "a name that is no string": "the name of block 0 is 3, and no string",
    "an unknown option": r"block 6 \(attention\) has the option 'sharp', and known are heads",
    "an option of another type": r"the option 'activation' of block 0 \(stem\) is 3, and not a name",
    "a flag beyond 1": r"the option 'resize_bias' of block 6 \(attention\) is 2; expected 0 or 1",
    "an option of an earlier kind": r"block 2 \(conv_downsample\) has the option 'stride', which is fixed",
    "another part": "the description has 'sink', and known are blocks, features, source; use a",
    "a feature of another type": "feature 0 is .*; 'block' is an integer, 'scaled' true or false",
    "options of another type": r"the options of block 0 are \[\], and no object",
    "tensors of another type": r"the tensors of block 0 are \[1\], and no list of names",
}
STRUCTURES.update(
    {
        "an unknown option": lambda data: attention(data)["options"].update(sharp=1),
        "an option of another type": lambda data: first(data)["options"].update(activation=3),
        "a flag beyond 1": lambda data: attention(data)["options"].update(resize_bias=2),
        "an option of an earlier kind": lambda data: data["blocks"][2]["options"].update(stride=2),
        "another part": lambda data: data.update(sink=1),
        "a feature of another type": lambda data: data.update(features=[{"block": "1", "scaled": False}]),
        "options of another type": lambda data: first(data).update(options=[]),
        "tensors of another type": lambda data: first(data).update(tensors=[1]),
    }
)


@pytest.mark.parametrize("name", REASONS)
def test_descriptions_say_what_is_wrong(path, name):
    metadata, tensors = content(path)
    write(path, changed_structure(metadata, STRUCTURES[name]), tensors)
    with pytest.raises(CheckpointError, match=rf"can be run: {REASONS[name]}") as error:
        load(path)
    assert "Error(" not in str(error.value)
    assert re.search(r"[^.]\.$", str(error.value))


def test_an_unknown_kind_given_to_the_op(path):
    metadata, _ = content(path)
    changed = changed_structure(metadata, STRUCTURES["an unknown kind"])["structure"]
    with pytest.raises(
        ModelError, match=r"this package knows: block 0 is of the kind 'conv9x9', and known are"
    ):
        structure.parse(changed)
    assert structure.parse(metadata["structure"]).keys == structure.read(metadata["structure"]).keys


@pytest.mark.parametrize("text", ["", "[]", "null", "{", '{"blocks": []}', "[" * 100_000])
def test_descriptions_that_are_none(path, text):
    metadata, tensors = content(path)
    write(path, {**metadata, "structure": text}, tensors)
    with pytest.raises(CheckpointError, match="does not describe a network that can be run"):
        load(path)
