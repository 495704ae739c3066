"""People hand over what they have: a model within a wrapper for several GPUs or an average, compiled, pruned,
traced or quantised; or a wrapper that cannot be copied.
"""

import threading

import pytest
import torch
from checks import one_torch_thread, seeded
from models import ODD_SQUARE, TINY, randomise, relative_error, timm_odd
from official.model import Official
from torch import nn
from torch.nn.utils import prune

from effv2_kernels import explain, optimize
from effv2_kernels.errors import ModelError
from effv2_kernels.model import OptimizedModel


@pytest.fixture(autouse=True)
def one_thread():
    with one_torch_thread():
        yield


@pytest.fixture
def model(generator):
    return TINY.build(generator)


@pytest.fixture
def images(generator):
    return TINY.images(generator, 2)


class Wrapper(nn.Module):
    def __init__(self, net, **attributes):
        super().__init__()
        self.net = net
        for name, value in attributes.items():
            setattr(self, name, value)
        self.eval()

    def forward(self, x):
        return self.net(x) * 2


def assert_same(fast, model, images):
    with torch.no_grad():
        assert relative_error(fast(images), model(images)) < 1e-5
    assert any(isinstance(part, OptimizedModel) for part in fast.modules())


@pytest.fixture
def process_group(tmp_path):
    """One process that believes to be one of several."""
    distributed = pytest.importorskip("torch.distributed")
    if not distributed.is_available() or not distributed.is_gloo_available():
        pytest.skip("this PyTorch has no gloo")
    store = f"file://{tmp_path / 'store'}"
    distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        yield
    finally:
        distributed.destroy_process_group()


@pytest.mark.situation("hand over `DistributedDataParallel(model)`", "refused: give `model.module`")
@pytest.mark.parametrize("strict", [True, False])
def test_distributed_data_parallel(model, images, process_group, strict):
    parallel = nn.parallel.DistributedDataParallel(model).eval()
    with pytest.raises(
        ModelError, match=r"^DistributedDataParallel shares its module.*give model.module instead"
    ):
        optimize(parallel, strict=strict)
    with pytest.raises(
        ModelError,
        match=r"'net' \(DistributedDataParallel\).*give model.net.module instead, and put the result",
    ):
        optimize(Wrapper(parallel), strict=strict)
    assert_same(optimize(parallel.module, strict=strict), model, images)


@pytest.mark.situation(
    "hand over a model of `fully_shard` or `FullyShardedDataParallel`", "refused: load its full weights"
)
def test_sharded_models_are_told_by_their_classes(model):
    """Sharding needs several processes; what is told apart is the name of the class that it makes."""
    marker = type("FSDPModule", (), {})
    sharded = TINY.build(torch.Generator().manual_seed(1))
    sharded.__class__ = type("FSDPEfficientFormerV2", (marker, type(model)), {})
    with pytest.raises(ModelError, match=r"holds only this process's share of its weights.*full_state_dict"):
        optimize(sharded)
    old = Wrapper(model)
    old.__class__ = type("FullyShardedDataParallel", (Wrapper,), {})
    with pytest.raises(ModelError, match=r"FullyShardedDataParallel shares its module.*model.module instead"):
        optimize(old)


@pytest.mark.situation(
    "hand over `nn.DataParallel(model)`", "works: on one device; for several GPUs give `model.module`"
)
def test_data_parallel(model, images):
    assert_same(optimize(nn.DataParallel(model).eval()), model, images)
    several = nn.DataParallel(model).eval()
    several.device_ids = [0, 1]
    with pytest.raises(ModelError, match=r"DataParallel shares its module out among GPUs.*model.module"):
        optimize(several)


@pytest.mark.situation("hand over an average of weights, `AveragedModel`", "works")
def test_averaged_model(model, images):
    averaged = torch.optim.swa_utils.AveragedModel(model).eval()
    fast = optimize(averaged)
    assert type(fast) is type(averaged)
    assert_same(fast, model, images)


@pytest.mark.situation("hand over `torch.compile(model)`, or call `model.compile()` before", "works")
def test_a_compiled_model(model, images):
    compiled = torch.compile(model, backend="eager")
    assert_same(optimize(compiled), model, images)
    assert isinstance(optimize(compiled)._modules["_orig_mod"], OptimizedModel)
    model.compile(backend="eager")
    assert_same(optimize(model), model, images)
    assert_same(optimize(Wrapper(model)).net, model, images)


@pytest.mark.situation(
    "wrap a model in a module that holds a lock, a socket or a generator",
    "refused: replace the model in its place",
)
@pytest.mark.parametrize("make", [threading.Lock, lambda: (i for i in range(3))], ids=["lock", "generator"])
def test_a_wrapper_that_cannot_be_copied(model, images, make):
    wrapper = nn.ModuleDict({"a": nn.Sequential(nn.Identity(), Wrapper(model, held=make()))}).eval()
    with pytest.raises(ModelError) as error:
        optimize(wrapper)
    message = str(error.value)
    assert "what is left of ModuleDict cannot be copied: 'held' of 'a.1' (Wrapper): " in message
    advice = "model['a'][1].net = effv2_kernels.optimize(model['a'][1].net)"
    assert f"Replace the network in place: {advice}." in message
    wrapper["a"][1].net = optimize(wrapper["a"][1].net)  # what the advice says
    with torch.no_grad():
        assert relative_error(wrapper["a"][1](images), 2 * model(images)) < 1e-5


def test_a_wrapper_that_raises_whatever_it_likes(model):
    class Stubborn(Wrapper):
        def __deepcopy__(self, memo):
            raise KeyError("not me")

    with pytest.raises(ModelError, match=r"Stubborn cannot be copied: 'not me'.*model.net = effv2_kernels"):
        optimize(Stubborn(model))


@pytest.mark.situation(
    "replace `forward` of a wrapper by a function that holds the model",
    "refused: replace the model in its place",
)
def test_a_wrapper_whose_forward_holds_the_original(model, images):
    """A copy of it would go on calling the original: right, and no faster."""
    wrapper = Wrapper(model)
    wrapper.forward = lambda x: model(x) * 3
    with pytest.raises(
        ModelError, match=r"Wrapper has a forward of its own.*model.net = effv2_kernels.optimize"
    ):
        optimize(wrapper)
    wrapper.net = optimize(wrapper.net)
    wrapper.forward = lambda x: x
    bound = Wrapper(model)
    bound.forward = bound.forward  # a method of its own, which is copied along
    assert isinstance(optimize(bound).forward.__self__.net, OptimizedModel)


@pytest.mark.situation(
    "prune a model, or use `weight_norm`", "works: with `parametrizations`, or made permanent"
)
def test_pruned_and_normalised_weights(generator, images):
    model = TINY.build(generator)
    prune.l1_unstructured(model.stages[0].blocks[0].mlp.fc1.conv, "weight", amount=0.5)
    with pytest.raises(ModelError, match="pruning: make them permanent"):
        optimize(model)
    prune.remove(model.stages[0].blocks[0].mlp.fc1.conv, "weight")
    assert_same(optimize(model), model, images)
    nn.utils.parametrizations.weight_norm(model.stem.conv1.conv)
    nn.utils.parametrizations.orthogonal(model.head)
    assert_same(optimize(model), model, images)


def official(generator, **options):
    return randomise(Official(ODD_SQUARE[0], resolution=64, num_classes=4, **options), generator)


@pytest.mark.situation(
    "hand over a traced, scripted or exported model", "refused: give the model, trace the result"
)
@pytest.mark.parametrize("strict", [True, False])
def test_traced_models(generator, strict):
    model = official(generator)
    x = torch.randn(1, 3, 64, 64, generator=generator)
    made = {
        "traced": torch.jit.trace(model, x, check_trace=False),
        "exported": torch.export.export(model, (x,)).module(),
    }
    for name, traced in made.items():
        with pytest.raises(
            ModelError, match=r"was traced, scripted or exported.*trace or export the result"
        ) as error:
            optimize(traced, strict=strict)
        assert "is not part of" not in str(error.value), name
        wrapper = Wrapper(nn.Identity())  # exported modules refuse eval()
        wrapper.net = traced
        with pytest.raises(ModelError, match=r"'net' \(.*\) was traced, scripted or exported"):
            optimize(wrapper, strict=strict)


@pytest.mark.parametrize("strict", [True, False])
def test_a_graph_of_timms_model(generator, strict):
    timm = pytest.importorskip("timm.models.efficientformer_v2")
    sizes = {"depths": (1, 1, 1, 1), "embed_dims": (16, 24, 40, 56), "num_vit": 1, "img_size": 32}
    traced = torch.fx.symbolic_trace(randomise(timm.EfficientFormerV2(**sizes), generator))
    with pytest.raises(ModelError, match="was traced, scripted or exported"):
        optimize(traced.eval(), strict=strict)


@pytest.mark.situation("quantise a model with `torch.ao`", "refused: give the model as it was before")
def test_a_quantised_model(generator):
    quantise = pytest.importorskip("torch.ao.quantization").quantize_dynamic
    model = quantise(official(generator), {nn.Linear})
    with pytest.raises(
        ModelError, match=r"'head'.*expected a plain nn.Linear. It is quantised: give the model"
    ):
        optimize(model)


@pytest.mark.situation(
    "call `optimize` on a module that holds an optimised model", "refused: it names the path"
)
def test_what_holds_an_optimised_model(model, generator):
    fast = optimize(model)
    with pytest.raises(
        ModelError, match=r"Wrapper holds a model that is optimised already, at 'net', and no other"
    ):
        optimize(Wrapper(fast))
    with pytest.raises(ModelError, match=r"at 'net', and no other"):
        optimize(Wrapper(fast), strict=False)
    both = Wrapper(fast, teacher=TINY.build(generator))
    with pytest.raises(
        ModelError, match=r"already, at 'net'. Optimise the others in place: model.teacher = effv2_kernels"
    ):
        optimize(both)
    rest = optimize(both, strict=False)
    assert isinstance(rest.teacher, OptimizedModel)
    assert isinstance(rest.net, OptimizedModel)
    assert rest.net is not fast
    assert not explain(rest).left


@pytest.mark.situation("use one block twice in a stage", "works")
def test_a_block_that_stands_in_two_places():
    model = timm_odd(seeded(701))
    model.stages[2].blocks.append(model.stages[2].blocks[0])
    images = torch.randn(1, 1, 64, 96, generator=seeded(702))
    with torch.no_grad():
        assert relative_error(optimize(model)(images), model(images)) <= 1e-5
        assert relative_error(optimize(model, verify=False)(images), model(images)) <= 1e-5


@pytest.mark.situation(
    "keep a function in a wrapper that calls the model", "refused: replace the model in its place"
)
def test_a_function_that_calls_the_original():
    class Wrapper(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net
            self.twice = lambda x: net(x) * 2

        def forward(self, x):
            return self.twice(x)

    with pytest.raises(ModelError, match=r"attribute twice .*model\.net = effv2_kernels\.optimize\("):
        optimize(Wrapper(TINY.build(seeded(703))).eval())
