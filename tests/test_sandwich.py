"""The sandwich rule: what a step adds to the gradients, what it draws, and that it trains."""

import contextlib
import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from checks import one_torch_thread, seeded
from supernets import SPACE, images_for, random_supernet

from effv2_kernels.errors import ModelError
from effv2_kernels.search.space import SearchSpace, StageChoices
from effv2_kernels.search.supernet import Supernet
from effv2_kernels.search.supernet.sandwich import Sandwich

TARGETS = torch.tensor([0, 3, 1])


@pytest.fixture(autouse=True)
def one_thread():
    with one_torch_thread():
        yield


def step(objective, model, images, targets=TARGETS, scale=lambda loss: loss):
    return objective.backward(model, images, targets, contextlib.nullcontext, scale)


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


class Fixed:
    """A teacher that always says the same."""

    def labels(self, images):
        return torch.tensor([2, 2, 4])


@pytest.mark.parametrize("teacher", [None, Fixed()], ids=["labels", "teacher"])
def test_gradients_are_the_sum_over_the_subnets(teacher):
    supernet = random_supernet(seeded(1)).train()
    if teacher is not None:
        supernet.set_distilled_training()
    expected, images = copy.deepcopy(supernet), images_for(SPACE, seeded(2), batch=3)
    objective = Sandwich(F.cross_entropy, teacher=teacher, alpha=0.3, temperature=2.0, seed=5)
    losses = step(objective, supernet, images, scale=lambda loss: loss * 0.25)

    smaller = Sandwich(F.cross_entropy, seed=5).smaller(SPACE, 0)
    assert smaller[0] == SPACE.smallest()
    assert len(smaller) == 3
    expected.select(SPACE.largest())
    outputs = expected(images)
    if teacher is None:
        outputs = (outputs,)
        total = F.cross_entropy(outputs[0], TARGETS)
    else:
        total = 0.7 * F.cross_entropy(outputs[0], TARGETS)
        total = total + 0.3 * F.cross_entropy(outputs[1], teacher.labels(images))
    assert losses["loss"] == pytest.approx(float(total.detach()))
    soft = [(t / 2).softmax(1).detach() for t in outputs]
    for architecture in smaller:
        expected.select(architecture)
        given = expected(images)
        for mine, p in zip(given if teacher else (given,), soft, strict=True):
            divergence = (p * (p.log() - (mine / 2).log_softmax(1))).sum() / 3  # over three images
            total = total + 4 * divergence / len(soft)
    (total * 0.25).backward()
    assert losses["loss"] + losses["smallest_loss"] + 2 * losses["random_loss"] == pytest.approx(
        float(total.detach())
    )
    found, wanted = gradients(supernet), gradients(expected)
    assert list(found) == list(wanted)
    for name in found:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-8, atol=1e-10)


def test_what_no_subnet_uses_has_no_gradient():
    supernet = random_supernet(seeded(3)).train()
    objective = Sandwich(F.cross_entropy, random_subnets=1)
    losses = step(objective, supernet, images_for(SPACE, seeded(4), batch=3))
    assert set(losses) == {"loss", "smallest_loss", "random_loss"}
    parameters = {name for name, _ in supernet.named_parameters()}
    trained = {SPACE.largest(), *objective.smaller(SPACE, 0)}
    used = {name for a in trained for name in supernet.shared_names(a).values()} & parameters
    assert used == set(gradients(supernet))
    assert ".bn." in max(parameters - used), "some BatchNorms are of other widths"
    assert all(".bn." in name or name.startswith("norm.") for name in parameters - used)


def test_the_selection_stays():
    supernet = random_supernet(seeded(5)).train()
    supernet.select(SPACE.smallest())
    step(Sandwich(F.cross_entropy, random_subnets=0), supernet, images_for(SPACE, seeded(6), batch=3))
    assert supernet.selected == SPACE.smallest()


def test_draws_follow_from_seed_and_step():
    objective = Sandwich(F.cross_entropy, seed=1)
    drawn = [tuple(objective.smaller(SPACE, i)) for i in range(20)]
    assert len(set(drawn)) == 20
    assert drawn == [tuple(Sandwich(F.cross_entropy, seed=1).smaller(SPACE, i)) for i in range(20)]
    assert drawn != [tuple(Sandwich(F.cross_entropy, seed=2).smaller(SPACE, i)) for i in range(20)]


def test_a_resumed_run_goes_on_with_the_same_draws():
    images = images_for(SPACE, seeded(7), batch=3)
    once, again = random_supernet(seeded(8)).train(), random_supernet(seeded(8)).train()
    whole = Sandwich(F.cross_entropy, seed=3)
    for _ in range(2):
        state = json.loads(json.dumps(whole.state_dict()))
        once.zero_grad()
        step(whole, once, images)
    assert whole.step == 2
    resumed = Sandwich(F.cross_entropy, seed=3)
    resumed.load_state_dict(state)
    step(resumed, again, images)
    assert resumed.step == 2
    found, wanted = gradients(again), gradients(once)
    assert list(found) == list(wanted)
    assert all(torch.equal(found[name], wanted[name]) for name in found)


def test_autocast():
    supernet = random_supernet(seeded(9), dtype=torch.float32).train()
    images = images_for(SPACE, seeded(10), batch=3, dtype=torch.float32)
    losses = Sandwich(F.cross_entropy).backward(
        supernet, images, TARGETS, lambda: torch.autocast("cpu", torch.bfloat16), lambda loss: loss
    )
    assert all(torch.tensor(loss).isfinite() for loss in losses.values())
    assert all(bool(g.isfinite().all()) for g in gradients(supernet).values())


@pytest.mark.parametrize("options", [{"alpha": 2}, {"temperature": 0}, {"random_subnets": -1}], ids=str)
def test_options_that_make_no_sense(options):
    with pytest.raises(ModelError, match="alpha must be"):
        Sandwich(F.cross_entropy, **options)


def test_what_is_no_supernet():
    with pytest.raises(ModelError, match="trains a Supernet, but got Linear"):
        step(Sandwich(F.cross_entropy), torch.nn.Linear(1, 1), torch.zeros(1, 1))


DIGITS = SearchSpace(
    (
        StageChoices((8, 16), (1,), (1, 2)),
        StageChoices((16,), (0, 1), (1, 2)),
        StageChoices((16, 24), (1, 2), (1, 2), (0, 1)),
        StageChoices((24, 32), (1,), (1, 2), (0, 1)),
    ),
    img_size=(16, 16),
    in_channels=1,
)


def test_a_few_steps_on_digits_teach_the_largest_and_the_smallest():
    pytest.importorskip("sklearn")
    from effv2_kernels import data

    (images, classes), _ = data.digits_split()
    images = F.interpolate(images[:512], size=DIGITS.img_size, mode="bilinear", align_corners=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        supernet = Supernet(DIGITS, num_classes=10, distillation=False, layer_scale_init=0.1).train()
    optimizer = torch.optim.AdamW(supernet.parameters(), lr=3e-3)
    objective = Sandwich(F.cross_entropy)

    def losses():
        """Of subnets with the statistics of these images, as in training."""
        found = {}
        with torch.no_grad():
            for name, architecture in (("largest", DIGITS.largest()), ("smallest", DIGITS.smallest())):
                model = supernet.subnet(architecture).train()
                found[name] = float(F.cross_entropy(model(images), classes[:512]))
        return found

    before = losses()
    for i in range(32):
        batch = slice(64 * (i % 8), 64 * (i % 8) + 64)
        optimizer.zero_grad()
        step(objective, supernet, images[batch], classes[batch])
        optimizer.step()
    after = losses()
    assert after["largest"] < 0.4 * before["largest"]
    assert after["smallest"] < 0.6 * before["smallest"]


PROCESS = """
import contextlib, sys
import torch
import torch.nn.functional as F
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
sys.path.insert(0, {tests!r})
from supernets import SPACE, images_for, random_supernet
from effv2_kernels.search.supernet.sandwich import Sandwich

torch.set_num_threads(1)
rank, folder = int(sys.argv[1]), {folder!r}
distributed.init_process_group("gloo", init_method="file://" + folder + "/store", rank=rank, world_size=2)
supernet = random_supernet(torch.Generator().manual_seed(1)).train()
model = DistributedDataParallel(supernet, broadcast_buffers=False)
objective = Sandwich(F.cross_entropy, random_subnets=1, seed=2)
images = images_for(SPACE, torch.Generator().manual_seed(3), batch=8)
targets = torch.arange(8) % 5
for part in range(2):  # of a batch: gradients are averaged behind the last one
    mine = slice(4 * part + 2 * rank, 4 * part + 2 * rank + 2)
    with contextlib.nullcontext() if part else model.no_sync():
        objective.backward(model, images[mine], targets[mine], contextlib.nullcontext, lambda loss: loss / 2)
gradients = {{name: p.grad for name, p in supernet.named_parameters() if p.grad is not None}}
torch.save(gradients, f"{{folder}}/{{rank}}.pt")
distributed.destroy_process_group()
"""


def test_two_processes_average_their_gradients(tmp_path):
    tests = str(Path(__file__).parent)
    code = PROCESS.format(tests=tests, folder=str(tmp_path))
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(rank)], cwd=Path(tests).parent) for rank in range(2)
    ]
    images = images_for(SPACE, torch.Generator().manual_seed(3), batch=8)
    targets = torch.arange(8) % 5
    supernet = random_supernet(torch.Generator().manual_seed(1)).train()
    for rank in range(2):
        objective = Sandwich(F.cross_entropy, random_subnets=1, seed=2)
        for part in range(2):
            mine = slice(4 * part + 2 * rank, 4 * part + 2 * rank + 2)
            step(objective, supernet, images[mine], targets[mine], lambda loss: loss / 4)
    try:
        assert [process.wait(120) for process in running] == [0, 0]
    finally:
        for process in running:
            process.kill()
    wanted = gradients(supernet)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert list(found) == list(wanted)
        for name in found:
            torch.testing.assert_close(found[name], wanted[name], rtol=1e-8, atol=1e-10)
