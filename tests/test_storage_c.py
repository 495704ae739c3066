"""libeffv2 takes the files that ``effv2_kernels.load`` takes, and refuses the others for the same reasons."""

import random
import re

import pytest
import small_files
import torch
from c_library import Network, Refused
from checks import seeded
from mutations import LABELS, MUTATIONS, Raw, join, split

from effv2_kernels import blocks, load
from effv2_kernels.errors import CheckpointError, ResolutionError

# What a message is about; the first that fits. A field that does not exist is, to one, a missing tensor.
REASONS = {
    "no safetensors file": r"is truncated or not a safetensors file",
    "of another program": r"was not written by effv2_kernels.save\(\)",
    "version": r"has (no version|version .*) of the format, and this \w+ reads versions '1' and '2'",
    "dtype": r"has (no dtype|dtype .*); expected 'fp16'",
    "not finite": r"not finite",
    "labels": r"has labels that do not name its classes",
    "description": r"does not (describe a network that can be run|hold the tensors that it describes)",
}


def reason(message):
    found = (name for name, pattern in REASONS.items() if re.search(pattern, message))
    return next(found, f"none: {message}")


def attempt(f):
    """(what it returns, None), or (None, the error that it raises)."""
    try:
        return f(), None
    except (CheckpointError, ResolutionError, Refused) as error:
        return None, error


def verdicts(path):
    """(Python's, C++'s): "taken", or the reason of the refusal and its message."""
    model, refused = attempt(lambda: load(path, threads=1))
    network, refused_in_c = attempt(lambda: Network(path, threads=1))
    said = [("taken", "") if e is None else (reason(str(e)), str(e)) for e in (refused, refused_in_c)]
    if network is None:
        expected = "unknown version" if said[1][0] == "version" else "invalid network"
        assert refused_in_c.status == expected
    elif model is not None:
        hold_outputs(model, network)
    return said


def hold_outputs(model, network):
    x = torch.randn(1, model.engine.in_channels, 32, 32)
    expected, misfit = attempt(lambda: model(x))
    found, misfit_in_c = attempt(lambda: network.run(x))
    if misfit is not None:
        assert "attention bias" in str(misfit)
        assert misfit_in_c.status == "invalid size"
        return
    outputs = expected if isinstance(expected, (list, tuple)) else [expected]
    for y, other in zip(found, outputs, strict=True):
        assert torch.allclose(y, other, rtol=0, atol=0, equal_nan=True)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder, found = tmp_path_factory.mktemp("files"), {}
    for name in small_files.FILES:
        small_files.write(name, folder / name, seeded(190))
        found[name] = (folder / name).read_bytes()
    return found


def hold_against_each_other(data, path, what):
    path.write_bytes(data)
    python, c = verdicts(path)
    assert python[0] == c[0], f"{what}: Python: {': '.join(python)}\nC++: {': '.join(c)}"
    assert not python[0].startswith("none")
    return python[0]


def _mutate(name, files, path, generator, times):
    seed = generator.initial_seed()
    found = []
    for i in range(times):
        chance = random.Random(f"{seed} {name} {i}")
        mutation = chance.choice(MUTATIONS)
        what = f"{mutation.__name__} {i} of {name}, seed {seed}"
        found.append(hold_against_each_other(mutation(files[name], chance), path, what))
    return found


@pytest.mark.parametrize("name", small_files.FILES)
def test_mutated_files(name, files, tmp_path, generator):
    found = _mutate(name, files, tmp_path / "a.effv2", generator, 400)
    # Every kind of reason came up, and not everything was refused.
    assert {"no safetensors file", "description", "not finite", "version", "taken"} <= set(found)


@pytest.mark.thorough
@pytest.mark.parametrize("part", range(5))
@pytest.mark.parametrize("name", small_files.FILES)
def test_many_mutated_files(name, part, files, tmp_path, generator):
    shifted = torch.Generator().manual_seed(generator.initial_seed() + 1 + part)
    _mutate(name, files, tmp_path / "a.effv2", shifted, 2000)


@pytest.mark.parametrize("name", small_files.FILES)
def test_good_files(name, files, tmp_path):
    assert hold_against_each_other(files[name], tmp_path / "a.effv2", name) == "taken"
    header, values = split(files[name])
    assert hold_against_each_other(join(header, values), tmp_path / "a.effv2", name) == "taken"


def test_truncation_at_every_byte_of_the_header(files, tmp_path):
    data = files["backbone"]
    for end in range(8 + int.from_bytes(data[:8], "little") + 9):
        (tmp_path / "a.effv2").write_bytes(data[:end])
        for refusal in (lambda: load(tmp_path / "a.effv2"), lambda: Network(tmp_path / "a.effv2")):
            with pytest.raises((CheckpointError, Refused), match="is truncated or not a safetensors file"):
                refusal()


@pytest.mark.parametrize("change", ["order of blocks", "order of tensors", "order of the header", "metadata"])
def test_what_may_be_otherwise(files, tmp_path, change):
    """The order of what has names does not count, and a key of the metadata that is new is no harm."""
    header, values = split(files["classifier"])
    structure = header["__metadata__"]["structure"]
    if change == "order of the header":
        header = dict(reversed(header.items()))
    elif change == "metadata":
        header["__metadata__"]["author"] = "somebody"
    elif change == "order of tensors":
        for block in structure["blocks"]:
            block["tensors"].reverse()
    else:
        structure["blocks"].reverse()
    expected = "description" if change == "order of blocks" else "taken"
    assert hold_against_each_other(join(header, values), tmp_path / "a.effv2", change) == expected


@pytest.mark.parametrize("name", small_files.FILES)
def test_labels(name, files, tmp_path):
    """What they may be, one by one; a network that returns maps has none."""
    header, values = split(files[name])
    found = []
    for text in (*LABELS, "", "[]", "{}", "null", "[1]", '["a","b","c","d","e"]\0'):
        header["__metadata__"]["labels"] = text
        found.append(hold_against_each_other(join(header, values), tmp_path / "a.effv2", repr(text)))
        if found[-1] == "taken":
            names, network = load(tmp_path / "a.effv2").labels, Network(tmp_path / "a.effv2")
            assert [network.class_name(i) for i in range(-1, 6)] == [None, *names, None]
    assert set(found) == ({"labels"} if name == "backbone" else {"labels", "taken"})


def set_option(index, **options):
    return lambda s: s["blocks"][index]["options"].update(options)


STRUCTURES = {
    "a flag of 2": set_option(3, resize_bias=2),
    "a residual of 2": set_option(1, residual=2),
    "a negative flag": set_option(3, resize_bias=-1),
    "heads of 0": set_option(3, heads=0),
    "many heads": set_option(3, heads=2**40),
    "an activation by number": set_option(1, activation=1),
    "an option that is true": set_option(3, resize_bias=True),
    "dw without stride": set_option(3, stride=1),
    "an option of another block": set_option(0, heads=8),
    "a tensor as an option": set_option(0, conv1_weight=1),
    "tensors that are an object": lambda s: s["blocks"][0].update(
        tensors=dict.fromkeys(s["blocks"][0]["tensors"], 1)
    ),
    "tensors that are a string": lambda s: s["blocks"][0].update(tensors="conv1_weight"),
    "features that are an object": lambda s: s.update(features={}),
    "features that are a string": lambda s: s.update(features=""),
    "more than is known": lambda s: s.update(comment="x"),
    "a block with more": lambda s: s["blocks"][0].update(comment="x"),
    "an earlier kind": lambda s: s["blocks"][2].update(kind="conv_downsample", options={"stride": 1}),
    "an earlier kind with odd options": lambda s: s["blocks"][2].update(
        kind="conv_downsample", options={"stride": "x"}
    ),
    "a scaled feature beside a head": lambda s: s.update(features=[{"block": 1, "scaled": True}]),
    "a feature of block -1": lambda s: s.update(features=[{"block": -1, "scaled": False}]),
    "a feature of block -0": lambda s: s.update(features=[{"block": Raw("-0"), "scaled": False}]),
    "half a pair of surrogates": lambda s: s["blocks"][0].update(name="\ud800"),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_structures(files, tmp_path, name):
    header, values = split(files["classifier"])
    STRUCTURES[name](header["__metadata__"]["structure"])
    hold_against_each_other(join(header, values), tmp_path / "a.effv2", name)


def test_kinds_of_earlier_versions(files, tmp_path):
    """C++ knows those of EARLIER_KINDS by what they are now."""
    for earlier, now in blocks.EARLIER_KINDS.items():
        header, values = split(files["classifier"])
        for block in header["__metadata__"]["structure"]["blocks"]:
            if block["kind"] in (earlier, now.kind):
                block.update(kind=earlier, options={})
        assert hold_against_each_other(join(header, values), tmp_path / "a.effv2", earlier) == "taken"


def test_sizes_that_are_too_large(tmp_path):
    """A tensor of more than 2^28 values, or a size beyond 2^20, is none of a network."""
    for shape in ([2**20 + 1, 1], [1, 2**20 + 1], [2**15, 2**14]):
        values = shape[0] * shape[1] * 4
        header = {
            "__metadata__": {
                "format": "effv2_kernels.network",
                "version": "1",
                "structure": {
                    "blocks": [
                        {"kind": "head", "name": "", "options": {}, "tensors": ["weight", "bias"]},
                    ],
                    "features": [],
                    "source": "",
                },
            },
            "blocks.0.weight": {"dtype": "F32", "shape": shape, "data_offsets": [0, values]},
            "blocks.0.bias": {"dtype": "F32", "shape": [1], "data_offsets": [values, values + 4]},
        }
        path = tmp_path / "a.effv2"
        with path.open("wb") as file:
            file.write(join(header, b""))
            file.truncate(file.tell() + values + 4)  # a sparse file
        python, c = verdicts(path)
        assert python[0] == c[0] == "description"
        assert "shape" in python[1]
        assert "shape" in c[1]
