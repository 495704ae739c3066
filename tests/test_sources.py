"""From modules of every origin to blocks: the same function, and a clear refusal of anything else."""

import collections
import copy

import pytest
import torch
from models import SMALL, randomise, relative_error
from official.model import Official
from torch import nn

from effv2_kernels import blocks, sources
from effv2_kernels.errors import ModelError
from effv2_kernels.reference import VARIANTS, Architecture, run, run_block

BOUND = 1e-6  # float32 weights against float64 ones

SQUARE = [
    Architecture((16, 24, 40, 56), (1, 1, 2, 2), 3.0, (1, 1)),
    Architecture((24, 40, 72, 104), (1, 2, 2, 3), (1.0, 2.5, 3.3, 6.0), (2, 1)),
    Architecture((8, 16, 24, 32), (1, 1, 1, 1), 4, 0),
]


def timm_model(generator, **options):
    timm = pytest.importorskip("timm")
    settings = {"img_size": 64, "num_classes": 10} | options
    return randomise(timm.create_model("efficientformerv2_s0", **settings), generator)


def timm_odd(generator, **options):
    """timm's class at widths, depths and ratios that none of its models has."""
    module = pytest.importorskip("timm.models.efficientformer_v2")
    settings = {
        "depths": (1, 1, 2, 2),
        "embed_dims": (16, 24, 40, 56),
        "mlp_ratios": (1.0, 2.5, (3.3, 6.0), 4.0),
        "num_vit": 1,
        "img_size": (64, 96),
        "in_chans": 1,
        "num_classes": 3,
    }
    return randomise(module.EfficientFormerV2(**(settings | options)), generator)


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


@pytest.mark.parametrize("architecture", SQUARE, ids=lambda a: str(a.widths))
@pytest.mark.parametrize("options", [{}, {"dist": False, "num_classes": 4}, {"num_classes": 0}], ids=str)
def test_official(architecture, options, generator):
    model = randomise(Official(architecture, resolution=96, **options), generator)
    network = sources.read(model)
    assert network.source == "official"
    assert_same(network, model, images(generator, 2, 3, 96, 96))


@pytest.mark.parametrize("norms", [False, True])
def test_official_features(norms, generator):
    model = randomise(Official(SQUARE[0], resolution=96, fork_feat=True, norms=norms), generator)
    assert_same(sources.read(model), model, images(generator, 1, 3, 96, 96))


@pytest.mark.parametrize("size", [(128, 128), (64, 192), (256, 128)])
def test_official_dense_backbone(size, generator):
    model = randomise(Official(SQUARE[0], resolution=128, fork_feat=True, dense=True), generator)
    assert_same(sources.read(model), model, images(generator, 1, 3, *size))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_weights_of_another_dtype(dtype, generator):
    model = Official(SQUARE[0], resolution=64, num_classes=10)
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
    model = Detector(Official(SQUARE[0], resolution=64, fork_feat=True))
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
    model = Detector(Official(SQUARE[0], resolution=64, fork_feat=True))
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
        model = randomise(Official(SQUARE[0], resolution=64), generator)
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
    model = randomise(Official(SQUARE[0], resolution=64), generator)
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


def swap(path, make):
    """A change that replaces the submodule at ``path``."""

    def change(model):
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, make(model.get_submodule(path)))

    return change


def set_value(path, value):
    def change(model):
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, value)

    return change


def put(path, value):
    """A change that writes one element of a tensor."""

    def change(model):
        parent, _, name = path.rpartition(".")
        getattr(model.get_submodule(parent), name).data.view(-1)[0] = value

    return change


class Doubled(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


def reconv(**changes):
    def make(conv):
        options = {
            "kernel_size": conv.kernel_size,
            "stride": conv.stride,
            "padding": conv.padding,
            "groups": conv.groups,
        } | changes
        return nn.Conv2d(conv.in_channels, conv.out_channels, **options)

    return make


ATTENTION = "stages.2.blocks.1.token_mixer"

REFUSED = {
    "training": (lambda m: m.train(), r"the model .*training mode: call model.eval\(\)"),
    "training_norm": (
        lambda m: m.stages[1].downsample.conv.bn.train(),
        r"'stages.1.downsample.conv.bn'.*training",
    ),
    "training_drop": (
        lambda m: setattr(m.stages[0].blocks[0].mlp, "drop1", nn.Dropout(0.5)),
        r"'stages.0.blocks.0.mlp.drop1'.*training",
    ),
    "relu": (swap("stem.conv1.bn.act", lambda _: nn.ReLU()), r"'stem.conv1.bn.act' \(ReLU\).*exact GELU"),
    "tanh": (swap(f"{ATTENTION}.act", lambda _: nn.GELU("tanh")), rf"'{ATTENTION}.act'.*exact GELU"),
    "prelu": (swap(f"{ATTENTION}.act", lambda _: nn.PReLU()), rf"'{ATTENTION}.act'.*no parameters"),
    "group_norm": (
        swap("stages.0.blocks.0.mlp.fc2.bn", lambda n: nn.GroupNorm(1, n.num_features)),
        r"'stages.0.blocks.0.mlp.fc2.bn' \(GroupNorm\).*expected an nn.BatchNorm2d",
    ),
    "no_statistics": (
        swap("norm", lambda n: nn.BatchNorm2d(n.num_features, track_running_stats=False).eval()),
        r"'norm'.*no running statistics",
    ),
    "kernel": (
        swap("stages.1.downsample.conv.conv", reconv(kernel_size=5, padding=2)),
        r"'stages.1.downsample.conv.conv'.*kernel_size=\(5, 5\), expected \(3, 3\)",
    ),
    "stride": (swap("stem.conv2.conv", reconv(stride=1)), r"stride=\(1, 1\), expected \(2, 2\)"),
    "padding": (swap("stem.conv2.conv", reconv(padding=0)), r"padding=\(0, 0\), expected \(1, 1\)"),
    "dilation": (swap("stem.conv2.conv", reconv(dilation=2)), r"dilation=\(2, 2\), expected \(1, 1\)"),
    "reflect": (swap("stem.conv2.conv", reconv(padding_mode="reflect")), r"padding_mode='reflect'"),
    "not_depthwise": (swap(f"{ATTENTION}.v_local.conv", reconv(groups=1)), r"groups=1, expected 1024"),
    "own_forward": (
        swap("stem.conv1.conv", lambda c: Doubled(1, c.out_channels, 3, 2, 1)),
        r"'stem.conv1.conv' \(Doubled\).*overrides the forward",
    ),
    "nearest": (
        swap(f"{ATTENTION}.upsample", lambda _: nn.Upsample(scale_factor=2)),
        rf"'{ATTENTION}.upsample'.*mode='bilinear'",
    ),
    "align_corners": (
        swap(
            f"{ATTENTION}.upsample",
            lambda _: nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
        ),
        rf"'{ATTENTION}.upsample'.*mode='bilinear'",
    ),
    "pool": (
        swap("stages.3.downsample.attn.q.pool", lambda _: nn.AvgPool2d(2, 2)),
        r"'stages.3.downsample.attn.q.pool'.*kernel_size=1, stride=2",
    ),
    "anti_aliasing": (set_value("stem.conv1.aa", nn.AvgPool2d(1)), r"'stem.conv1.aa'.*nothing that changes"),
    "no_pool": (set_value("global_pool", ""), r"global_pool='', expected 'avg'"),
    "hook": (
        lambda m: m.stages[2].register_forward_hook(lambda *_: None),
        r"'stages.2'.*forward hooks",
    ),
    "nan": (
        put("stages.2.blocks.0.mlp.fc1.conv.weight", float("nan")),
        r"'stages.2.blocks.0.mlp.fc1.conv.weight'",
    ),
    "infinity": (put("head.bias", float("inf")), r"parameter 'head.bias' holds 1 values that are not finite"),
    "nan_statistics": (put("norm.running_mean", float("nan")), r"buffer 'norm.running_mean'"),
    "negative_variance": (put("norm.running_var", -1.0), r"'head': .*not finite in float32"),
    "overflow": (put("head.weight", 3e38), r"'head': .*not finite in float32"),
    "wrong_indices": (put(f"{ATTENTION}.attention_bias_idxs", 1), rf"'{ATTENTION}'.*does not number"),
    "indices_out_of_range": (put(f"{ATTENTION}.attention_bias_idxs", 99), rf"'{ATTENTION}'.*does not number"),
    "meta": (lambda m: m.to("meta"), r"holds no data \(meta device\)"),
    "one_head": (set_value("head_dist", nn.Identity()), r"one of its two heads"),
    "no_mid": (
        swap("stages.0.blocks.0.mlp.mid", lambda _: nn.Sequential(nn.Conv2d(16, 16, 1))),
        "is not an EfficientFormerV2",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_path(case, generator):
    change, message = REFUSED[case]
    model = timm_odd(generator)
    if case == "overflow":  # one over a small deviation is beyond float32
        model.norm.running_var.fill_(1e-6)
        model.norm.eps = 1e-6
    change(model)
    with pytest.raises(ModelError, match=message):
        sources.read(model)


def test_official_bias_that_is_outdated(generator):
    """The official code gathers its bias in eval(): weights that are loaded later are not used."""
    model = randomise(Official(SQUARE[0], resolution=64), generator)
    model.network[6][1].token_mixer.attention_biases.data += 1
    with pytest.raises(ModelError, match=r"'network.6.1.token_mixer'.*outdated copy.*model.eval\(\)"):
        sources.read(model)
    model.eval()
    sources.read(model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_value("network.1.light", True), r"'network.1'.*light=True"),
        (set_value("network.0.0.mlp.mid_conv", False), r"'network.0.0.mlp'.*mid_conv is off"),
        (swap("patch_embed.2", lambda _: nn.Hardswish()), r"'patch_embed.2' \(Hardswish\).*exact GELU"),
        (swap("network.6.1.token_mixer.q", lambda s: s[:1]), r"'network.6.1.token_mixer.q'.*Sequential of 2"),
    ],
)
def test_official_refused_by_path(change, message, generator):
    model = randomise(Official(SQUARE[0], resolution=64), generator)
    change(model)
    with pytest.raises(ModelError, match=message):
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

    model = randomise(Official(SQUARE[0], resolution=64, fork_feat=True), generator)
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
        "conv_downsample": 2,
        "attention_downsample": 1,
        "head": 1,
    }
