"""Two processes over gloo: the same weights on both, and those of one process with the same batches."""

import os
import socket
import subprocess
import sys
import traceback
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checks import one_torch_thread
from torch import nn

pytest.importorskip("timm")

from training import (
    ENVIRONMENT,
    PLAIN,
    RECIPE,
    Plain,
    arguments,
    make_trainer,
    same,
    tiny_model,
    write_digits,
)

from effv2_kernels.errors import InputError, TrainingError, UnavailableError
from effv2_kernels.train import accuracy, open_data, processes, state, validation_loader


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp("digits"), 64, 21)


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def in_two_processes(function, folder):
    """What function(group, rank) returns in each of two processes as torchrun sets them up."""
    port = free_port()
    children = []
    for rank in range(2):
        child = os.fork()
        if child == 0:
            try:
                torch.set_num_threads(1)
                os.environ |= {
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "WORLD_SIZE": "2",
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port),
                }
                with processes("cpu") as group:
                    torch.save(function(group, rank), folder / f"rank{rank}.pt")
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_two_processes_make_the_steps_of_one(tmp_path, digits, accumulation):
    """All images are one batch, so that their order says nothing, and there is no BatchNorm in the model."""
    recipe = replace(PLAIN, batch=64, lr=16.0, optimizer="sgd", accumulation=accumulation, ema_decay=0.5)

    def train(group, rank):
        trainer = make_trainer(tmp_path / "two", digits, group, recipe, model=Plain())
        row = trainer.fit()
        return {"weights": trainer.model.state_dict(), "ema": trainer.ema.module.state_dict(), "row": row}

    both = in_two_processes(train, tmp_path)
    assert same(both[0]["weights"], both[1]["weights"])
    assert same(both[0]["ema"], both[1]["ema"])
    with one_torch_thread(), processes("cpu") as group:
        alone = make_trainer(tmp_path / "one", digits, group, recipe, model=Plain())
        row = alone.fit()
    before = Plain().state_dict()
    for name, value in alone.model.state_dict().items():
        moved = float((value - before[name]).norm())
        assert moved > 1e-3
        assert float((both[0]["weights"][name] - value).norm()) < 1e-4 * moved, name
    # Losses are means over both processes, and both know all images that were evaluated.
    for name in ("loss", "top1", "top5"):
        assert both[0]["row"][name] == both[1]["row"][name] == pytest.approx(row[name], rel=1e-4)
    # One of them writes.
    assert state.load(tmp_path / "two" / "last.pt")["epoch"] == 4


def test_networks_with_batchnorm_stay_the_same_on_both(tmp_path, digits):
    """Their statistics, which each process has of its own images, are averaged; the images differ."""
    recipe = replace(RECIPE, epochs=2, cooldown_epochs=0)

    def train(group, rank):
        model = tiny_model(seed=rank)  # as if the processes had begun differently
        trainer = make_trainer(tmp_path / "run", digits, group, recipe, model=model)
        seen = []
        backward = trainer.objective.backward

        def watching(model, images, *rest):
            seen.append(float(images.mean()))
            return backward(model, images, *rest)

        trainer.objective.backward = watching
        trainer.fit()
        return {"weights": trainer.model.state_dict(), "ema": trainer.ema.module.state_dict(), "seen": seen}

    both = in_two_processes(train, tmp_path)
    assert same(both[0]["weights"], both[1]["weights"])
    assert same(both[0]["ema"], both[1]["ema"])
    assert len(both[0]["seen"]) == len(both[1]["seen"]) == 2 * 4
    assert not set(both[0]["seen"]) & set(both[1]["seen"])


def test_several_passes_and_parameters_that_are_not_used(tmp_path, digits):
    """A step as a supernet makes it: the whole, then a part, whose gradients are averaged over processes."""

    class Parts(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.stem, self.extra = nn.Linear(3 * 64, 16), nn.Linear(16, 16)
            self.head = nn.Linear(16, 10)
            self.small = False

        def forward(self, x):
            x = nn.functional.adaptive_avg_pool2d(x, 8).flatten(1)
            x = self.stem(x).relu()
            return self.head(x if self.small else x + self.extra(x))

    class Both:
        def backward(self, model, images, targets, autocast, scale):
            plain = getattr(model, "module", model)
            found = {}
            for name, plain.small in (("loss", False), ("small_loss", True)):
                with autocast():
                    loss = nn.functional.cross_entropy(model(images), targets)
                scale(loss).backward()
                found[name] = float(loss.detach())
            plain.small = False
            return found

    recipe = replace(PLAIN, batch=64, lr=30.0, optimizer="sgd", ema_decay=0.0)

    def train(group, rank, folder="two"):
        trainer = make_trainer(
            tmp_path / folder, digits, group, recipe, model=Parts(), objective=Both(), unused_parameters=True
        )
        trainer.fit()
        return trainer.model.state_dict()

    both = in_two_processes(train, tmp_path)
    assert same(*both)
    with one_torch_thread(), processes("cpu") as group:
        alone = train(group, 0, "one")
    before = Parts().state_dict()
    for name, value in alone.items():
        moved = float((value - before[name]).norm())
        assert moved > 1e-3, name
        assert float((both[0][name] - value).norm()) < 1e-4 * moved, name


def test_images_are_counted_once(tmp_path, digits):
    """Of 21, the sampler gives both processes 11."""
    data = open_data(digits)

    def evaluate(group, rank):
        loader = validation_loader(data, PLAIN, group, workers=0, batch=4)
        return accuracy(Plain(), loader, 10, group)

    both = in_two_processes(evaluate, tmp_path)
    with one_torch_thread(), processes("cpu") as group:
        alone = evaluate(group, 0)
    assert both[0] == both[1] == alone


def test_processes_that_found_different_checkpoints(tmp_path, digits):
    """As on machines that share no disk: of these, only that of rank 0 has one."""
    with one_torch_thread(), processes("cpu") as group:
        recipe = replace(PLAIN, epochs=1, warmup_epochs=0, cooldown_epochs=0)
        make_trainer(tmp_path / "own0", digits, group, recipe, model=Plain()).fit()

    def resume(group, rank):
        with pytest.raises(TrainingError) as raised:
            make_trainer(tmp_path / f"own{rank}", digits, group, recipe, model=Plain(), resume=True)
        return str(raised.value)

    for rank, said in enumerate(in_two_processes(resume, tmp_path)):
        assert "process 1 does not begin as process 0 does: epoch 1, there 0." in said
        assert f"with '{tmp_path / f'own{rank}'}' on a disk that all share" in said


@pytest.mark.parametrize(
    ("device", "error", "words"),
    [
        ("gpu", InputError, "--device takes auto, cpu, cuda or cuda:1, but got 'gpu'"),
        ("meta", UnavailableError, "training runs on cpu and cuda, but not on 'meta'"),
        ("cuda:99", UnavailableError, "there is no GPU cuda:99: PyTorch sees"),
    ],
)
def test_devices_that_are_none(device, error, words):
    with pytest.raises(error, match=words), processes(device):
        pass


@pytest.mark.thorough
def test_the_command_under_torchrun(tmp_path):
    data = write_digits(tmp_path / "data", 32, 16)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"),
            *("--master_port", str(free_port()), "-m", "effv2_kernels"),
            *arguments(data, tmp_path / "run", "--epochs", "2"),
        ],
        env=ENVIRONMENT,
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch 2: ") == 1  # one of both prints
    kept = state.load(tmp_path / "run" / "last.pt")
    assert kept["epoch"] == 2
    assert kept["conditions"]["processes"] == 2
