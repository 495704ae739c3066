"""From modules of every origin to blocks: the same function, and a clear refusal of anything else."""

import collections
import copy

import pytest
import torch
from models import ODD_SQUARE, SMALL, randomise, relative_error, timm_odd
from official.model import Official
from torch import nn

from effv2_kernels import blocks, sources
from effv2_kernels.errors import ModelError
from effv2_kernels.reference import VARIANTS, run, run_block

BOUND = 1e-6  # float32 weights against float64 ones


def timm_model(generator, **options):
    timm = pytest.importorskip("timm")
    settings = {"img_size": 64, "num_classes": 10} | options
    return randomise(timm.create_model("efficientformerv2_s0", **settings), generator)


def assert_same(network, model, images):
    """The blocks against the module itself, both in float64."""
    model.double()
    model.eval()  # the official code keeps a copy of its bias, which double() leaves behind
    with torch.inference_mode():
        expected, actual = model(images.double()), run(network, images.double())
    if isinstance(expected, torch.Tensor):
        expected, actual = [expected], [actual]
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape
        assert relative_error(a, e) < BOUND


def images(generator, *shape):
    return torch.randn(shape, generator=generator)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_classes": 0},
        {"distillation": False},
        {"layer_scale_init_value": None},
        {"act_layer": "gelu"},
        {"drop_path_rate": 0.3, "drop_rate": 0.2, "proj_drop_rate": 0.1},
        {"norm_eps": 1e-2},
    ],
    ids=str,
)
def test_timm(options, generator):
    model = timm_odd(generator, **options)
    network = sources.read(model)
    assert network.source == "timm"
    assert_same(network, model, images(generator, 2, 1, 64, 96))


def test_timm_after_a_run(generator):
    """The bias that timm's model has gathered and kept is the one that it was given."""
    model = timm_odd(generator)
    model(images(generator, 1, 1, 64, 96))
    assert_same(sources.read(model), model, images(generator, 1, 1, 64, 96))


@pytest.mark.parametrize("indices", [(0, 1, 2, 3), (1, 3), (2,), (0,)])
@pytest.mark.parametrize("wrapper", ["list", "getter"])
def test_timm_features(wrapper, indices, generator):
    model = timm_model(generator, features_only=True, feature_cls=wrapper, out_indices=indices)
    network = sources.read(model)
    assert_same(network, model, images(generator, 1, 3, 64, 64))


def test_timm_features_that_are_no_list(generator):
    model = timm_model(generator, features_only=True, feature_cls="dict")
    with pytest.raises(ModelError, match="does not return a list"):
        sources.read(model)


@pytest.mark.parametrize("architecture", ODD_SQUARE, ids=lambda a: str(a.widths))
@pytest.mark.parametrize("options", [{}, {"dist": False, "num_classes": 4}, {"num_classes": 0}], ids=str)
def test_official(architecture, options, generator):
    model = randomise(Official(architecture, resolution=96, **options), generator)
    network = sources.read(model)
    assert network.source == "official"
    assert_same(network, model, images(generator, 2, 3, 96, 96))


@pytest.mark.parametrize("norms", [False, True])
def test_official_features(norms, generator):
    model = randomise(Official(ODD_SQUARE[0], resolution=96, fork_feat=True, norms=norms), generator)
    assert_same(sources.read(model), model, images(generator, 1, 3, 96, 96))


@pytest.mark.parametrize("size", [(128, 128), (64, 192), (256, 128)])
def test_official_dense_backbone(size, generator):
    model = randomise(Official(ODD_SQUARE[0], resolution=128, fork_feat=True, dense=True), generator)
    assert_same(sources.read(model), model, images(generator, 1, 3, *size))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_weights_of_another_dtype(dtype, generator):
    model = Official(ODD_SQUARE[0], resolution=64, num_classes=10)
    randomise(model, generator)
    model.to(dtype)
    network = sources.read(model)
    assert all(t.dtype == torch.float32 for block in network.blocks for t in block.tensors().values())
    assert_same(network, model, images(generator, 1, 3, 64, 64))


def test_blocks_are_float32_contiguous_and_detached(generator):
    model = SMALL[0].build(generator)
    for block in sources.read(model).blocks:
        for name, tensor in block.tensors().items():
            assert tensor.dtype == torch.float32, name
            assert tensor.is_contiguous(), name
            assert not tensor.requires_grad, name


def test_names_are_paths_of_the_source(generator):
    model = timm_odd(generator)
    network = sources.read(model)
    assert network.names[0] == "stem"
    assert "stages.2.blocks.1.token_mixer" in network.names
    for name, block in zip(network.names, network.blocks, strict=True):
        assert isinstance(model.get_submodule(name), nn.Module)
        assert isinstance(block, blocks.Block)


def test_the_model_is_left_as_it_was(generator):
    model = timm_odd(generator)
    before = copy.deepcopy(model.state_dict())
    sources.read(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Detector(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.neck = nn.Sequential(nn.Conv2d(56, 8, 1), nn.ReLU())

    def forward(self, x):
        return self.neck(self.backbone(x)[-1])


def test_network_inside_a_larger_module(generator):
    model = Detector(Official(ODD_SQUARE[0], resolution=64, fork_feat=True))
    randomise(model, generator)
    ((path, network),) = sources.find_networks(model)
    assert path == "backbone"
    assert len(network.features) == 4
    assert [(u.path, u.class_name) for u in sources.unrecognised(model)] == [("neck", "Sequential")]
    with pytest.raises(ModelError, match="holds one at 'backbone'"):
        sources.read(model)


def test_several_networks_are_found_in_order(generator):
    pair = nn.ModuleDict({"a": SMALL[0].build(generator), "b": nn.Sequential(SMALL[0].build(generator))})
    pair.eval()
    assert [path for path, _ in sources.find_networks(pair)] == ["a", "b.0"]
    assert sources.unrecognised(pair) == []


def test_a_network_that_cannot_be_read_is_found_by_path(generator):
    model = Detector(Official(ODD_SQUARE[0], resolution=64, fork_feat=True))
    randomise(model, generator)
    model.backbone.network[2][0].mlp.act = nn.ReLU()
    with pytest.raises(ModelError, match=r"in 'backbone': 'network.2.0.mlp.act' \(ReLU\).*exact GELU"):
        sources.find_networks(model)
    assert sources.find_networks(model, strict=False) == []
    reasons = {u.path: u.reason for u in sources.unrecognised(model)}
    assert "exact GELU" in reasons["backbone.network.2.0"]


@pytest.mark.parametrize("origin", ["timm", "official", "reference"])
def test_parts(origin, generator):
    """Each part alone is the same function as its blocks one after another."""
    if origin == "timm":
        model, x = timm_odd(generator), images(generator, 1, 1, 64, 96)
    elif origin == "official":
        model = randomise(Official(ODD_SQUARE[0], resolution=64), generator)
        x = images(generator, 1, 3, 64, 64)
    else:
        model, x = SMALL[0].build(generator), SMALL[0].images(generator)
    wrapped = nn.Sequential(collections.OrderedDict(inner=model))
    wrapped.eval()
    parts = sources.read_parts(wrapped)
    whole = sources.read(model)
    assert sum(len(part) for part in parts.values()) == len(whole.blocks) - 1  # all but the head
    assert sources.read_parts(wrapped, skip=("inner",)) == {}

    inputs, outputs = {}, {}

    def record(path):
        def hook(module, args, output):
            inputs[path], outputs[path] = args[0], output

        return hook

    for path in parts:
        wrapped.get_submodule(path).register_forward_hook(record(path))
    wrapped.double()
    wrapped.eval()
    with torch.inference_mode():
        wrapped(x.double())
        for path, part in parts.items():
            y = inputs[path]
            for block in part:
                y = run_block(block, y)
            assert relative_error(y, outputs[path]) < BOUND, path


def test_a_part_that_cannot_be_read_is_left_out(generator):
    model = randomise(Official(ODD_SQUARE[0], resolution=64), generator)
    model.network[2][0].mlp.act = nn.GELU(approximate="tanh")
    parts = sources.read_parts(model)
    assert "network.2.0" not in parts
    assert "network.0.0" in parts


@pytest.mark.parametrize("module", [nn.Linear(3, 4), nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), nn.ReLU()])
def test_another_model(module):
    module.eval()
    with pytest.raises(ModelError, match="is not an EfficientFormerV2"):
        sources.read(module)
    assert sources.find_networks(module) == []
    assert sources.read_parts(module) == {}
    assert [(u.path, u.class_name) for u in sources.unrecognised(module)] == [("", type(module).__name__)]


def test_efficientformer_of_the_first_version():
    timm = pytest.importorskip("timm")
    model = timm.create_model("efficientformer_l1", num_classes=10).eval()
    with pytest.raises(ModelError, match="is not an EfficientFormerV2"):
        sources.read(model)


def test_frozen_norms(generator):
    """Detectors freeze their BatchNorm into classes of the same name in several libraries."""

    class FrozenBatchNorm2d(nn.Module):
        def __init__(self, norm):
            super().__init__()
            self.eps = norm.eps
            for name in ("weight", "bias", "running_mean", "running_var"):
                self.register_buffer(name, getattr(norm, name).detach().clone())

        def forward(self, x):
            scale = self.weight / (self.running_var + self.eps).sqrt()
            shift = self.bias - self.running_mean * scale
            return x * scale[:, None, None] + shift[:, None, None]

    model = randomise(Official(ODD_SQUARE[0], resolution=64, fork_feat=True), generator)
    step = model.network[1]
    step.norm = FrozenBatchNorm2d(step.norm)
    step.train()  # of no effect on a frozen norm
    assert_same(sources.read(model), model, images(generator, 1, 3, 64, 64))


def test_parametrized_weights(generator):
    model = timm_odd(generator)
    nn.utils.parametrizations.weight_norm(model.stem.conv2.conv)
    assert_same(sources.read(model), model, images(generator, 1, 1, 64, 96))


@pytest.mark.parametrize("variant", VARIANTS)
def test_published_sizes(variant, generator):
    """Block counts of the four published models: stem, stages with attention and FFN, three steps, head."""
    timm = pytest.importorskip("timm")
    arch = VARIANTS[variant]
    network = sources.read(randomise(timm.create_model(variant, img_size=32, num_classes=2), generator))
    kinds = collections.Counter(block.kind for block in network.blocks)
    assert kinds == {
        "stem": 1,
        "ffn": sum(arch.depths),
        "attention": sum(arch.late_attention()),
        "conv": 2,
        "attention_downsample": 1,
        "head": 1,
    }
