"""``save`` and ``load``: the same bits again on any machine, names of classes, what ``save`` refuses."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import saved_network
import torch
from checks import saved_content as content
from checks import seeded
from models import FAMILIES, SMALL, SMALL_MOBILE, name_of
from saved_network import SPEC
from torch import nn

from effv2_kernels import load, optimize, save
from effv2_kernels.errors import CheckpointError, InputError, ModelError, UnavailableError, UnknownNameError
from effv2_kernels.model import OptimizedModel

pytest.importorskip("safetensors.torch")

fast, path = saved_network.fast, saved_network.path  # fixtures


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


@pytest.mark.parametrize("kind", [iter, tuple, np.array])
def test_labels_in_any_order_of_things(fast, tmp_path, kind):
    save(fast, tmp_path / "a.effv2", labels=kind(LABELS))
    assert load(tmp_path / "a.effv2").labels == tuple(LABELS)


@pytest.mark.parametrize("labels", ["0123456789", b"0123456789", set(LABELS), dict.fromkeys(LABELS), 10])
def test_labels_that_are_no_list(fast, tmp_path, labels):
    said = f"must be a list of names, one for each class, but are of type {type(labels).__name__}"
    with pytest.raises(InputError, match=said):
        save(fast, tmp_path / "a.effv2", labels=labels)
    assert not (tmp_path / "a.effv2").exists()


def test_arguments_of_other_kinds(fast, tmp_path):
    with pytest.raises(ModelError, match=r"what optimize\(\) returned for a whole network, but got str"):
        save("a model", tmp_path / "a.effv2")
    with pytest.raises(CheckpointError, match=r"cannot write .*: embedded null byte"):
        save(fast, "a\0b")
    save(fast, tmp_path / "a.effv2")
    assert load(os.fsencode(tmp_path / "a.effv2")).state_dict().keys() == fast.state_dict().keys()
    for device in ("nosuch", 2.5):
        with pytest.raises(InputError, match=f"a device of PyTorch, .* but got {device!r}"):
            load(tmp_path / "a.effv2", device=device)


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


@pytest.mark.skipif(os.name != "posix", reason="links need rights elsewhere")
def test_a_link_stays_and_leads_to_what_is_saved(fast, tmp_path):
    """Also one that leads nowhere yet, and one by way of another, out of another folder."""
    (tmp_path / "links").mkdir()
    for name in ("old.effv2", "new.effv2"):
        target, near, far = tmp_path / name, tmp_path / f"to {name}", tmp_path / "links" / name
        near.symlink_to(name)
        far.symlink_to(f"../to {name}")
        if name.startswith("old"):
            save(fast, target, dtype="fp16")
            target.chmod(0o604)
        save(fast, far)
        assert near.is_symlink()
        assert far.is_symlink()
        assert not target.is_symlink()
        assert load(target).network.names == fast.network.names
        assert content(target)[0]["version"] == "1"
    assert (tmp_path / "old.effv2").stat().st_mode & 0o777 == 0o604
    assert len([*tmp_path.iterdir()]) == 5
    assert len([*(tmp_path / "links").iterdir()]) == 2


@pytest.mark.skipif(os.name != "posix", reason="links need rights elsewhere")
def test_a_link_that_cannot_be_saved_through_leaves_nothing(fast, tmp_path, monkeypatch):
    def full(*args, **options):
        assert not target.exists()  # nor would a kill leave an empty one
        raise OSError(28, "No space left on device")

    target, link = tmp_path / "target.effv2", tmp_path / "link.effv2"
    link.symlink_to(target)
    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(CheckpointError, match=r"cannot write .*No space left"):
        save(fast, link)
    assert link.is_symlink()
    assert [*tmp_path.iterdir()] == [link]
    link.unlink()
    link.symlink_to(link)
    with pytest.raises(CheckpointError, match=r"cannot write .*link\.effv2"):
        save(fast, link)


# One that waits for who reads what is written into a pipe would wait for ever.
IRREGULAR = """
import sys
from effv2_kernels import load, save
from effv2_kernels.errors import CheckpointError

network = load(sys.argv[1])
for path in sys.argv[2:]:
    try:
        save(network, path)
    except CheckpointError as error:
        print(error)
"""


@pytest.mark.skipif(os.name != "posix", reason="pipes are POSIX's")
def test_nothing_is_saved_in_place_of_what_is_no_file(path, tmp_path):
    """Nor of what a link leads to; a superuser could rename a file over /dev/null."""
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "folder" / "pipe")
    (tmp_path / "folder" / "link").symlink_to("pipe")
    paths = [str(tmp_path / "folder" / name) for name in ("pipe", "link", "")]
    command = [sys.executable, "-c", IRREGULAR, str(path), *paths]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    *irregular, folder = done.stdout.splitlines()
    for given, said in zip(paths[:2], irregular, strict=True):
        assert said.startswith(f"cannot write {given}: ")
        assert "it is no regular file" in said
    assert "Is a directory" in folder
    assert {*os.listdir(tmp_path / "folder")} == {"pipe", "link"}


def test_saving_needs_safetensors(fast, tmp_path, monkeypatch):

    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(UnavailableError, match=r"pip install 'effv2_kernels\[io\]'"):
        save(fast, tmp_path / "a.effv2")
