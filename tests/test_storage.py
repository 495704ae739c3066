"""``save`` and ``load``: the same bits again on any machine, and no bad file gets in."""

import json
import os
import re
import struct
import subprocess
import sys

import pytest
import torch
from checks import saved_content as content
from checks import seeded
from models import FAMILIES, SMALL, SMALL_MOBILE, name_of
from torch import nn

from effv2_kernels import container, load, optimize, save, structure
from effv2_kernels.errors import CheckpointError, InputError, ModelError, UnavailableError, UnknownNameError
from effv2_kernels.model import OptimizedModel

safetensors = pytest.importorskip("safetensors.torch")

SPEC = SMALL[0]


@pytest.fixture(scope="module")
def fast():
    return optimize(SPEC.build(seeded(70)))


@pytest.fixture
def path(fast, tmp_path):
    path = tmp_path / "network.effv2"
    save(fast, path)
    return path


def write(path, metadata, tensors):
    safetensors.save_file(tensors, path, metadata=metadata)


def changed_structure(metadata, change):
    """The metadata with its JSON changed in place by ``change(data)``."""
    data = json.loads(metadata["structure"])
    change(data)
    return {**metadata, "structure": json.dumps(data)}


@pytest.mark.parametrize("spec", [*SMALL, *SMALL_MOBILE], ids=name_of)
def test_loads_the_same_network(spec, tmp_path):
    g = seeded(71)
    fast, images = optimize(spec.build(g)), spec.images(g, 2)
    save(fast, str(tmp_path / "a.effv2"))
    loaded = load(tmp_path / "a.effv2")
    assert torch.equal(loaded(images), fast(images))
    assert loaded.network.names == fast.network.names
    assert loaded.network.source == fast.network.source != ""
    assert loaded.state_dict().keys() == fast.state_dict().keys()


def test_the_same_network_gives_the_same_bytes(tmp_path):
    """Also one that was loaded from them; safetensors alone orders metadata at random."""
    fast = optimize(SPEC.build(seeded(71)))
    names = [f"Klasse {i}, größer" for i in range(fast(SPEC.images(seeded(0), 1)).shape[1])]
    written = []
    for i in range(6):
        save(fast, tmp_path / f"{i}.effv2", labels=names)
        written.append((tmp_path / f"{i}.effv2").read_bytes())
        fast = load(tmp_path / f"{i}.effv2")
    assert set(written) == {written[0]}


@pytest.mark.parametrize(
    ("spec", "options"),
    [
        (SPEC, {"resize_bias": True}),
        (SPEC, {"resize_bias": True, "feature_norms": (True, False, True, True)}),
        (SMALL_MOBILE[0], {}),
    ],
)
def test_loads_a_backbone(tmp_path, spec, options):
    g = seeded(72)
    fast = optimize(spec.build(g, features_only=True, **options))
    images = torch.randn(1, 3, 80, 50, generator=g)
    save(fast, tmp_path / "a.effv2")
    found, expected = load(tmp_path / "a.effv2")(images), fast(images)
    assert type(found) is list
    for y, e in zip(found, expected, strict=True):
        assert torch.equal(y, e)


def test_saves_a_part(tmp_path):
    g = seeded(73)
    model = SPEC.build(g)
    part = optimize(model.stages[2].blocks[1], strict=False)
    x = torch.randn(1, 40, 4, 4, generator=g)
    save(part, tmp_path / "a.effv2")
    assert torch.equal(load(tmp_path / "a.effv2")(x), part(x))


@pytest.mark.parametrize("spec", FAMILIES, ids=name_of)
def test_loaded_networks_work_like_others(spec, tmp_path):
    g = seeded(74)
    fast, images = optimize(spec.build(g)), spec.images(g)
    save(fast, tmp_path / "a.effv2")
    loaded = load(tmp_path / "a.effv2", isa="scalar", threads=1)
    assert loaded.engine.isa == "scalar"
    assert loaded.threads == 1
    save(loaded, tmp_path / "again.effv2")
    assert torch.equal(load(tmp_path / "again.effv2")(images), fast(images))


LABELS = [f"name of {i}" for i in range(9)] + ["Grünfink, 金魚"]


def test_labels(fast, tmp_path):
    """They go into the file, come with the model that is loaded, and into the next file."""
    save(fast, tmp_path / "a.effv2", labels=LABELS)
    assert json.loads(content(tmp_path / "a.effv2")[0]["labels"]) == LABELS
    loaded = load(tmp_path / "a.effv2")
    assert loaded.labels == tuple(LABELS)
    save(loaded, tmp_path / "b.effv2", dtype="fp16")
    assert load(tmp_path / "b.effv2").labels == tuple(LABELS)
    save(loaded, tmp_path / "b.effv2", labels=())
    assert "labels" not in content(tmp_path / "b.effv2")[0]
    assert not hasattr(load(tmp_path / "b.effv2"), "labels")


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (LABELS[:9], "there are 9 for 10 classes"),
        ([*LABELS[:9], 7], "that of class 9 is no string"),
        (["", *LABELS[1:]], "that of class 0 is empty"),
        ([*LABELS[:9], "two\nlines"], "that of class 9 has a control character"),
        ([*LABELS[:9], "\x9b2J"], "that of class 9 has a control character"),
    ],
)
def test_labels_that_do_not_name_the_classes(fast, tmp_path, labels, words):
    with pytest.raises(InputError, match=f"labels: {words}"):
        save(fast, tmp_path / "a.effv2", labels=labels)
    assert not (tmp_path / "a.effv2").exists()


def test_an_attribute_of_that_name_that_names_no_classes_stays_out(tmp_path):
    for own in (("one", "two"), tuple(range(10)), LABELS):
        model = SPEC.build(seeded(70))
        model.labels = own
        save(optimize(model), tmp_path / "a.effv2")
        assert "labels" not in content(tmp_path / "a.effv2")[0]


def test_maps_have_no_labels(tmp_path):
    fast = optimize(SPEC.build(seeded(70), features_only=True))
    with pytest.raises(InputError, match="has no classes"):
        save(fast, tmp_path / "a.effv2", labels=LABELS)


def test_a_file_is_plain_data(path, fast):
    metadata, tensors = content(path)
    assert metadata["format"] == "effv2_kernels.network"
    assert metadata["version"] == "1"
    assert [block["kind"] for block in json.loads(metadata["structure"])["blocks"]][:3] == [
        "stem",
        "ffn",
        "conv_downsample",
    ]
    assert tensors.keys() == fast.state_dict().keys()
    weights = sum(t.nbytes for t in fast.state_dict().values())
    assert path.stat().st_size < weights + 50_000


def test_reading_does_not_depend_on_the_file_afterwards(path, fast):
    """Not even through a memory map."""
    images = SPEC.images(seeded(75))
    loaded = load(path)
    path.write_bytes(b"\0" * path.stat().st_size)
    assert torch.equal(loaded(images), fast(images))


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


def test_options_of_load_are_those_of_optimize(path):
    with pytest.raises(UnknownNameError, match="unknown ISA"):
        load(path, isa="avx1024")
    with pytest.raises(UnavailableError, match=r"the cpu backend runs fp32.*, not int8"):
        load(path, dtype="int8")


def test_save_takes_optimised_networks_only(fast, tmp_path):
    with pytest.raises(
        ModelError, match=r"save\(\) takes what optimize\(\) returned.*but got EfficientFormerV2"
    ):
        save(SPEC.build(seeded(77)), tmp_path / "a")
    with pytest.raises(ModelError, match=r"It holds one at '0': save that"):
        save(nn.Sequential(fast), tmp_path / "a")
    with pytest.raises(CheckpointError, match="cannot write"):
        save(fast, tmp_path / "no folder" / "a.effv2")
    assert isinstance(fast, OptimizedModel)


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_who_may_read_a_file(fast, tmp_path):
    """A new one is as others that are made here, and one that is written over as it was."""
    path, other = tmp_path / "new.effv2", tmp_path / "other"
    other.touch()
    save(fast, path)
    assert path.stat().st_mode == other.stat().st_mode
    path.chmod(0o604)
    save(fast, path)
    assert path.stat().st_mode & 0o777 == 0o604
    load(path)


def test_a_file_that_cannot_be_written_leaves_none(fast, tmp_path, monkeypatch):
    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(CheckpointError, match=r"cannot write .*No space left"):
        save(fast, tmp_path / "new.effv2")
    assert not list(tmp_path.iterdir())


def test_saving_needs_safetensors(fast, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(UnavailableError, match=r"pip install 'effv2_kernels\[io\]'"):
        save(fast, tmp_path / "a.effv2")
