"""Checkpoints: whole or not there, plain values alone, and of one run only."""

import csv
import json
import os
import random
import re
import resource
from contextlib import contextmanager
from types import SimpleNamespace

import another_process
import numpy as np
import pytest
import torch

pytest.importorskip("timm")

from training import RECIPE, same, tiny_model

from effv2_kernels.errors import TrainingError
from effv2_kernels.replacing import replacing
from effv2_kernels.train import log, state
from effv2_kernels.train.events import Events
from effv2_kernels.train.log import Log
from effv2_kernels.train.run import Run


@contextmanager
def disk_for(size):
    """Files cannot grow beyond so many bytes, which is what a full disk looks like to a process."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("of_torch", [True, False])
def test_a_full_disk_leaves_the_old_file(tmp_path, of_torch):
    path = tmp_path / "last.pt"
    state.save(path, {"epoch": 1})
    before = path.read_bytes()
    large = torch.zeros(1_000_000)

    def write():
        if of_torch:
            state.save(path, {"large": large})
        else:
            state.write(path, large.numpy().tobytes())

    with disk_for(100_000), pytest.raises(TrainingError) as raised:
        write()
    assert "File too large" in str(raised.value)
    assert "the old 'last.pt' is whole" in str(raised.value)
    assert "--resume" in str(raised.value)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["last.pt"]


def test_a_full_disk_at_the_first_write(tmp_path):
    with disk_for(1000), pytest.raises(TrainingError, match="there is none yet"):
        state.write(tmp_path / "last.pt", bytes(2000))
    assert os.listdir(tmp_path) == []


def test_two_that_write_one_file_each_write_it_whole(tmp_path):
    """Each beside it under another name, and the last one to end is right."""
    path = tmp_path / "file"
    with replacing(path) as one:
        one.write_text("one")
        with replacing(path) as other:
            other.write_text("other")
        assert path.read_text() == "other"
    assert path.read_text() == "one"
    assert os.listdir(tmp_path) == ["file"]


def test_a_checkpoint_is_written_to_where_a_link_leads(tmp_path):
    """As people have it who keep them on a larger disk."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / "last.pt"
    path.symlink_to(tmp_path / "disk" / "last.pt")
    for content in (b"first", b"second"):
        state.write(path, content)
        assert path.is_symlink()
        assert (tmp_path / "disk" / "last.pt").read_bytes() == content
    assert os.listdir(tmp_path / "run") == os.listdir(tmp_path / "disk") == ["last.pt"]


def test_random_generators_go_on(tmp_path):
    def draw():
        return random.random(), np.random.rand(), float(torch.rand(()))

    np.random.normal()  # leaves a second one behind
    path = tmp_path / "state.pt"
    state.save(path, {"random": state.random_state()})
    expected = [draw() for _ in range(3)]
    assert draw() != expected[0]
    state.set_random_state(state.load(path)["random"])
    assert [draw() for _ in range(3)] == expected


def test_a_full_disk_ends_the_log_with_a_clear_error(tmp_path, capfd):
    """Also that of TensorBoard, whose own writer would fail in a thread, with a traceback."""
    row = {"epoch": 1, "lr": 0.1, "loss": 2.0, "top1": 0.5}
    with disk_for(10), pytest.raises(TrainingError, match=r"cannot write '.*events\.out.* too large\)"):
        Log(tmp_path).write([row])
    assert os.listdir(tmp_path) == []
    kept = Log(tmp_path)
    kept.write([row])
    (events,) = tmp_path.glob("events.out.tfevents.*")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with disk_for(len(before[events.name]) + 10), pytest.raises(TrainingError) as raised:
        kept.write([row, row | {"epoch": 2}])
    assert f"cannot write '{events}' (File too large); the old '{events.name}' is whole" in str(raised.value)
    assert "--resume" in str(raised.value)
    kept.close([row])
    after = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert {name: after[name] for name in before} == before
    assert capfd.readouterr().err == ""


def test_a_value_of_any_length_is_told_by_its_beginning():
    (told,) = state.differences({"space": "a" * 5000}, {"space": "b" * 5000})
    assert told.startswith('space "aaa')
    assert 'now "bbb' in told
    assert len(told) < 200


@pytest.mark.parametrize("content", [b"", b"no checkpoint", None])
def test_what_is_no_checkpoint(tmp_path, content):
    path = tmp_path / "last.pt"
    if content is None:
        torch.save({"state_dict": tiny_model().state_dict()}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(TrainingError, match=rf"'{re.escape(str(path))}' is no checkpoint of a run"):
        state.load(path)


def test_a_checkpoint_that_would_run_code_is_not_read(tmp_path):
    class Touch:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "touched"),)

    torch.save({"format": state.FORMAT, "epoch": Touch()}, tmp_path / "last.pt")
    with pytest.raises(TrainingError, match="is no checkpoint of a run"):
        state.load(tmp_path / "last.pt")
    assert not (tmp_path / "touched").exists()


ABOUT = {"model": "tiny", "classes": 10}


def finished(folder, recipe=RECIPE, about=ABOUT, **conditions):
    """A run of one epoch in the folder."""
    run = Run(folder, recipe, about, conditions=conditions)
    model = tiny_model()
    run.finish_epoch({"epoch": 1, "top1": 0.5, "lr": 0.1, "loss": 2.0}, model, None, {"state_dict": model})
    run.close()
    return model


def test_a_folder_with_a_run_is_not_written_over(tmp_path):
    finished(tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(TrainingError, match="holds a run already: go on with it by --resume"):
        Run(tmp_path, RECIPE, ABOUT)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("recipe", "about", "words"),
    [
        ({"epochs": "9", "mixup": "0.1"}, ABOUT, "epochs 3, now 9; mixup 0.8, now 0.1."),
        ({}, {**ABOUT, "classes": 12}, "classes 10, now 12."),
        ({}, {**ABOUT, "model": "other"}, 'model "tiny", now "other".'),
        ({}, {**ABOUT, "teacher": "x"}, 'teacher "", now "x".'),
    ],
)
def test_another_run_than_the_checkpoints(tmp_path, recipe, about, words):
    finished(tmp_path)
    before = (tmp_path / "last.pt").read_bytes()
    with pytest.raises(TrainingError, match=re.escape(f"last.pt' is of another run: {words}")):
        Run(tmp_path, RECIPE.changed(recipe), about, resume=True)
    assert (tmp_path / "last.pt").read_bytes() == before
    assert json.loads((tmp_path / "recipe.json").read_text())["classes"] == 10


def test_what_a_killed_write_left_is_removed(tmp_path):
    """It has another name, and is neither read nor in the way."""
    finished(tmp_path)
    elsewhere = tmp_path / "disk"
    elsewhere.mkdir()
    (tmp_path / "last.pt").rename(elsewhere / "of this run.pt")
    (tmp_path / "last.pt").symlink_to(elsewhere / "of this run.pt")
    for left in (tmp_path / ".best.safetensors.89abcdef.part", elsewhere / ".of this run.pt.0123abcd.part"):
        left.write_bytes((tmp_path / "last.pt").read_bytes()[:100])
    others = {tmp_path / ".film.mp4.part", elsewhere / ".of another run.pt.0123abcd.part"}
    for other in others:
        other.touch()
    run = Run(tmp_path, RECIPE, ABOUT, resume=True)
    assert run.epoch == 1
    assert set(tmp_path.rglob(".*.part")) == others
    run.close()


def test_a_folder_is_of_one_process_at_a_time(tmp_path):
    """Until that ends, killed or not. A rank that writes nothing is not asked."""
    finished(tmp_path)

    def train(stay):
        run = Run(tmp_path, RECIPE, ABOUT, resume=True)
        with replacing(run.checkpoint) as part:
            part.write_bytes(b"half")
            stay()

    with another_process.that_stays(train) as process:
        (part,) = tmp_path.glob(".last.pt.*.part")
        with pytest.raises(TrainingError) as raised:
            Run(tmp_path, RECIPE, ABOUT, resume=True)
        said = str(raised.value)
        assert f"'{tmp_path}' is being written by another run, process {process} on " in said
        assert "wait until that has ended, or end it, and go on with --resume" in said
        assert part.exists()
        assert Run(tmp_path, RECIPE, ABOUT, resume=True, writes=False).epoch == 1
    run = Run(tmp_path, RECIPE, ABOUT, resume=True)
    assert run.epoch == 1
    assert not part.exists()
    run.close()


def test_conditions_may_change_and_are_told(tmp_path):
    finished(tmp_path, processes=2, workers=4)
    run = Run(tmp_path, RECIPE, ABOUT, conditions={"processes": 8, "workers": 4}, resume=True)
    assert run.changed == ["processes 2, now 8"]
    assert run.epoch == 1
    run.close()


@pytest.mark.parametrize("lost", ["both", "the row in the file", "the whole file"])
def test_epochs_that_were_not_logged_are_when_the_run_goes_on(tmp_path, monkeypatch, lost):
    """The checkpoint comes first: what a full disk or a kill kept from the log is in it."""
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = Run(tmp_path, RECIPE, ABOUT)
    model = tiny_model()

    def finish(epoch):
        row = {"epoch": epoch, "top1": epoch / 8, "lr": 0.1, "loss": 2.0}
        run.finish_epoch(row, model, None, {"state_dict": model})

    def full(*args):
        raise TrainingError("the disk is full")

    finish(1)
    with monkeypatch.context() as patch:
        if lost == "both":
            patch.setattr(Events, "write", full)
        else:
            patch.setattr(log, "state", SimpleNamespace(write=full))
        with pytest.raises(TrainingError):
            finish(2)
    run.close()
    if lost == "the whole file":
        (tmp_path / "log.csv").unlink()
    for epochs in (2, 3):
        run = Run(tmp_path, RECIPE, ABOUT, resume=True)
        if epochs == 3:
            finish(3)
        run.close()
        expected = [(epoch, epoch / 8) for epoch in range(1, epochs + 1)]
        with (tmp_path / "log.csv").open() as file:
            assert [(int(row["epoch"]), float(row["top1"])) for row in csv.DictReader(file)] == expected
        accumulator = events.EventAccumulator(str(tmp_path))
        accumulator.Reload()
        assert [(event.step, event.value) for event in accumulator.Scalars("top1")] == expected


def test_starts_without_an_epoch_leave_no_events(tmp_path):
    for resume in (False, True):
        Run(tmp_path, RECIPE, ABOUT, resume=resume).close()
    assert not list(tmp_path.glob("events.out.tfevents.*"))
    finished(tmp_path)
    before = sorted(tmp_path.glob("events.out.tfevents.*"))
    assert len(before) == 1
    Run(tmp_path, RECIPE, ABOUT, resume=True).close()
    assert sorted(tmp_path.glob("events.out.tfevents.*")) == before


def test_a_run_to_go_on_with_that_is_not_there_begins(tmp_path):
    run = Run(tmp_path / "new", RECIPE, ABOUT, resume=True)
    assert run.epoch == 0
    assert run.last_good() == "there is no checkpoint yet"
    run.close()


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="cannot make the folder"):
        Run(tmp_path / "file" / "run", RECIPE, ABOUT)


def test_parts_get_their_state_again(tmp_path):
    model = finished(tmp_path)
    other = tiny_model(seed=5)
    assert not same(model.state_dict(), other.state_dict())
    run = Run(tmp_path, RECIPE, ABOUT, resume=True)
    run.restore({"state_dict": other})
    assert same(model.state_dict(), other.state_dict())
    run.close()
