"""BatchNorm statistics that are made again: exact, in any order, and nothing else changes."""

import copy

import pytest
import torch
from checks import one_torch_thread, seeded
from models import TINY
from supernets import SPACE, images_for, random_supernet
from torch import nn

from effv2_kernels.errors import InputError
from effv2_kernels.search.supernet.calibration import recalibrate


@pytest.fixture(autouse=True)
def one_thread():
    with one_torch_thread():
        yield


def state(module):
    return {name: t.clone() for name, t in module.state_dict().items()}


def close(actual, expected, tolerance=1e-10):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def test_one_batchnorm_gets_mean_and_variance_of_all_values():
    generator = seeded(1)
    x = torch.randn(30, 4, 3, 5, generator=generator, dtype=torch.float64) * 3 + 100
    norm = nn.BatchNorm2d(4).double()
    norm.running_mean.fill_(float("nan"))
    assert recalibrate(norm, x.split([1, 7, 20, 2])) == 30
    values = x.transpose(0, 1).flatten(1)
    close(norm.running_mean, values.mean(1))
    close(norm.running_var, values.var(1))
    assert int(norm.num_batches_tracked) == 4


def test_one_batch_gives_what_training_would():
    generator = seeded(2)
    model = TINY.build(generator).double()
    x = TINY.images(generator, 6).double()
    trained = copy.deepcopy(model).train()
    for module in trained.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    trained(x)
    recalibrate(model, [x])
    for name, value in model.state_dict().items():
        if name.endswith(("running_mean", "running_var")):
            close(value, trained.state_dict()[name])


def test_the_order_does_not_matter():
    generator = seeded(3)
    model = TINY.build(generator).double()
    batches = [TINY.images(generator, count).double() for count in (4, 2, 5)]
    recalibrate(model, batches)
    expected = state(model)
    recalibrate(model, iter(batches[::-1]))
    for name, value in model.state_dict().items():
        close(value, expected[name])


def test_a_supernet_changes_in_the_selected_subnet_alone():
    generator = seeded(4)
    supernet = random_supernet(generator, drop_path_rate=0.9)
    architecture = SPACE.sample(generator)
    supernet.select(architecture)
    model, before = supernet.subnet(), state(supernet)
    batches = [images_for(SPACE, generator, batch=3) for _ in range(2)]
    rng = torch.get_rng_state()
    assert recalibrate(supernet, batches) == recalibrate(model, batches) == 6
    assert torch.equal(torch.get_rng_state(), rng)

    for name, value in supernet.shared(architecture).items():
        close(model.state_dict()[name], value)
    statistics = {
        shared
        for name, shared in supernet.shared_names(architecture).items()
        if name.endswith(("running_mean", "running_var", "num_batches_tracked"))
    }
    changed = {name for name, t in supernet.state_dict().items() if not torch.equal(t, before[name])}
    assert changed == statistics


@pytest.mark.parametrize("training", [False, True])
def test_nothing_else_changes(training):
    generator = seeded(5)
    model = TINY.build(generator).train(training)
    model.stages[0].eval()
    model.norm.momentum = 0.3
    modes = [module.training for module in model.modules()]
    recalibrate(model, [TINY.images(generator, 3)])
    assert [module.training for module in model.modules()] == modes
    assert model.norm.momentum == 0.3
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def broken():
    yield torch.randn(3, 3, 32, 32)
    raise OSError("the disk is gone")


@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        ([], InputError, "there are no images"),
        ([torch.randn(4, 3, 32, 32), torch.randn(1, 3, 32, 32)], InputError, "two values a channel"),
        ([torch.randn(4, 1, 32, 32)], InputError, "takes images"),
        (broken(), OSError, "the disk is gone"),
    ],
    ids=["none", "one_value", "channels", "broken"],
)
def test_after_an_error_everything_is_as_before(batches, error, message):
    model = TINY.build(seeded(6))
    before = state(model)
    with pytest.raises(error, match=message):
        recalibrate(model, batches)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert not any(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
