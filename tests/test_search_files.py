"""Files that searches read and write: others' stay as they are, and what is wrong in them is said."""

import errno
import fcntl
import json
import os
from pathlib import Path

import another_process
import digit_supernet
import pytest
import torch
from digit_supernet import DIGITS
from safetensors.torch import load_file, save_file
from searches import Formula, problem

from effv2_kernels.errors import CheckpointError, SearchError
from effv2_kernels.search.evaluation import Remembered
from effv2_kernels.search.journal import Journal
from effv2_kernels.search.methods.random_search import RandomSearch
from effv2_kernels.search.search import run_in
from effv2_kernels.search.supernet import Supernet, supernet_file

one_thread = digit_supernet.one_thread  # fixture

ABOUT = {"of": "this", "seed": 3}


@pytest.mark.parametrize(
    "content",
    [
        "my notes line 1\nmy notes last line",
        "one line",
        '["a list"]\n{"half',
        '{"of": "something else", "seed": 3}\n{"half',
        '{"of": "this", "seed": 3}\nwhat is this\n{"half',
    ],
)
def test_a_file_that_is_refused_stays_as_it_is(content, tmp_path):
    path = tmp_path / "file.txt"
    path.write_text(content)
    with pytest.raises(SearchError, match="or choose another one"):
        Journal(path, ABOUT, remedy="choose another one")
    assert path.read_text() == content


def test_half_a_line_goes_when_the_next_is_written(tmp_path):
    path = tmp_path / "journal.jsonl"
    first = Journal(path, ABOUT)
    first.add({"a": 1})
    whole = path.read_text()
    path.write_text(whole + '{"a": ')
    again = Journal(path, ABOUT)
    assert again.records == [{"a": 1}]
    assert path.read_text() == whole + '{"a": '
    again.add({"a": 2})
    again.add({"a": 3})
    assert path.read_text() == whole + '{"a": 2}\n{"a": 3}\n'


def test_a_file_that_may_only_be_read_is(tmp_path, monkeypatch):
    """As a colleague's accuracies. Root, as whom tests may run, may write anything."""
    path = tmp_path / "journal.jsonl"
    first = Journal(path, ABOUT)
    first.add({"a": 1})
    first.close()
    opened = Path.open

    def refuse(path, mode="r", *options, **more):
        if "a" in mode:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, mode, *options, **more)

    monkeypatch.setattr(Path, "open", refuse)
    again = Journal(path, ABOUT)
    assert again.records == [{"a": 1}]
    with pytest.raises(SearchError, match="cannot be written"):
        again.add({"a": 2})
    with pytest.raises(SearchError, match="cannot be written: Permission denied"):
        Journal(tmp_path / "new.jsonl", ABOUT)


@pytest.mark.parametrize("locks", [True, False])
def test_a_file_is_of_one_process_at_a_time(locks, tmp_path, monkeypatch):
    """Until that ends, killed or not; file systems without locks have none to respect."""
    path = tmp_path / "journal.jsonl"
    Journal(path, ABOUT).add({"a": 1})

    def keep(stay):
        kept = Journal(path, ABOUT)
        stay()
        del kept

    def unsupported(file, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    with another_process.that_stays(keep):
        if locks:
            with pytest.raises(SearchError, match="is being written by another process: wait"):
                Journal(path, ABOUT)
        else:
            monkeypatch.setattr(fcntl, "lockf", unsupported)
            assert Journal(path, ABOUT).records == [{"a": 1}]
    again = Journal(path, ABOUT)
    again.add({"a": 2})
    assert again.records == [{"a": 1}, {"a": 2}]


def test_a_search_is_of_one_process_at_a_time(tmp_path):
    """Also where it shares accuracies with another one; who is killed is gone on with at once."""
    out, shared = tmp_path / "out", tmp_path / "shared.jsonl"
    first = run_in(out, RandomSearch(2), problem(), evaluations=shared)

    def search(stay):
        def ended(step):
            if step == first.steps[-1]:
                stay()

        run_in(out, RandomSearch(2), problem(), resume=True, evaluations=shared, record=ended)

    with another_process.that_stays(search):
        for folder, evaluations in ((out, None), (tmp_path / "other", shared)):
            with pytest.raises(SearchError, match="is being written by another process: wait"):
                run_in(folder, RandomSearch(2), problem(), resume=True, evaluations=evaluations)
    assert run_in(out, RandomSearch(2), problem(), resume=True, evaluations=shared) == first


def test_accuracies_of_somebody_else(tmp_path):
    """Of a file the advice is another file, and of a folder another folder."""
    notes = tmp_path / "foreign.txt"
    notes.write_text("my notes line 1\nmy notes last line")
    with pytest.raises(SearchError, match=r"is no record .* or choose another --evaluations-file"):
        run_in(tmp_path / "out", RandomSearch(2), problem(), evaluations=notes)
    assert notes.read_text() == "my notes line 1\nmy notes last line"
    (tmp_path / "out" / "evaluations.jsonl").write_text("notes")
    with pytest.raises(SearchError, match=r"is no record .* or choose another folder"):
        run_in(tmp_path / "out", RandomSearch(2), problem())


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ('{"accuracy": 0.5}', "is of no architecture"),
        ('{"architecture": {}}', "an accuracy must be from 0 to 1, but is null"),
        ('{"architecture": {}, "accuracy": NaN}', "but is NaN"),
        ('{"architecture": {}, "accuracy": 1e400}', "but is Infinity"),
        ('{"architecture": {}, "accuracy": "0.5"}', 'but is "0.5"'),
        ('{"architecture": {}, "accuracy": 1' + "0" * 5000 + "}", "is damaged"),
        ("[" * 99_999, "is damaged"),
        ("1", "is damaged"),
    ],
)
def test_accuracies_that_are_none(record, message, tmp_path):
    path = tmp_path / "evaluations.jsonl"
    Remembered(Formula(), path)
    path.write_text(path.read_text() + record + "\n")
    with pytest.raises(SearchError, match="is damaged") as raised:
        Remembered(Formula(), path)
    assert message in str(raised.value)
    assert "choose another file of accuracies" in str(raised.value)


@pytest.mark.parametrize("value", [None, "three", {"architecture": {"widths": [10**400] * 4}}])
def test_steps_that_are_none(value, tmp_path):
    run_in(tmp_path, RandomSearch(2), problem())
    steps = tmp_path / "steps.jsonl"
    head, line, *rest = steps.read_text().splitlines()
    changed = json.loads(line) | {"chosen": value}
    steps.write_text("\n".join([head, json.dumps(changed), *rest, ""]))
    with pytest.raises(SearchError, match=r"is damaged \(step 0 is none\)"):
        run_in(tmp_path, RandomSearch(2), problem(), resume=True)


@pytest.fixture
def rewritten(tmp_path):
    """A supernet's file with other metadata, or other tensors; its path."""
    path = tmp_path / "supernet.safetensors"
    supernet_file.save(Supernet(DIGITS, num_classes=3), path)

    def write(tensors=None, **changes):
        metadata = supernet_file._metadata(path, "")
        for name, values in changes.items():
            metadata[name] = json.dumps(json.loads(metadata[name]) | values)
        save_file(load_file(path) if tensors is None else tensors, path, metadata=metadata)
        return path

    return write


def test_a_supernet_without_weights(rewritten):
    for tensors in ({}, {"count": torch.zeros(1, dtype=torch.int64)}):
        with pytest.raises(CheckpointError, match="is damaged: it holds no weights"):
            supernet_file.load(rewritten(tensors))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": "ten"}, "num_classes of its options must be an integer"),
        ({"num_classes": 10**30}, "must be an integer below 2^31"),
        ({"num_classes": 0}, "a supernet needs num_classes of at least 1"),
        ({"distillation": 1}, "distillation of its options must be true or false, but is 1"),
        ({"layer_scale_init": "x"}, "layer_scale_init of its options must be a number"),
        ({"drop_path_rate": None}, "drop_path_rate of its options must be a number"),
    ],
)
def test_options_of_a_supernet_that_are_none(options, message, rewritten):
    with pytest.raises(CheckpointError, match="is damaged: ") as raised:
        supernet_file.load(rewritten(options=options))
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ({"hold_out": "x"}, "hold_out of its images must be a number"),
        ({"hold_out": 1.5}, "hold_out must be at least 0 and below 1"),
        ({"hold_out": 10**400}, "must be a finite number"),
        ({"trained_on": 3}, "trained_on of its images must be a text"),
        ({"crop": "0.9"}, "crop of its images must be a number"),
        ({"crop": 0}, "crop above 0 and at most 1"),
        ({"interpolation": []}, "interpolation of its images must be a text"),
        ({"interpolation": "fine"}, "is one of bicubic, "),
        ({"size": 3}, "its images has 'size', and known are hold_out"),
    ],
)
def test_images_of_a_supernet_that_are_none(images, message, rewritten):
    with pytest.raises(CheckpointError, match="is damaged: ") as raised:
        supernet_file.images_of(rewritten(images=images))
    assert message in str(raised.value)
