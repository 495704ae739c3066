"""What sources refuse, and that the message names the submodule and the reason."""

import pytest
from models import ODD_SQUARE, randomise, timm_odd
from official.model import Official
from torch import nn

from effv2_kernels import sources
from effv2_kernels.errors import ModelError


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
    model = randomise(Official(ODD_SQUARE[0], resolution=64), generator)
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
    model = randomise(Official(ODD_SQUARE[0], resolution=64), generator)
    change(model)
    with pytest.raises(ModelError, match=message):
        sources.read(model)
