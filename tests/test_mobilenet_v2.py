"""MobileNetV2: the same function as timm's and torchvision's, what is read of them, and what is refused."""

import functools

import pytest
import torch
from checks import BLOCK_BOUND, assert_close, seeded
from models import SMALL_MOBILE, randomise, relative_error
from torch import nn

from effv2_kernels import blocks, create_model, declaration, explain, optimize, shapes, sources
from effv2_kernels.errors import CheckpointError, ModelError
from effv2_kernels.families.mobilenet_v2 import VARIANTS, Architecture, MobileNetV2, scaled
from effv2_kernels.families.mobilenet_v2.architecture import Stage
from effv2_kernels.families.mobilenet_v2.shapes import network_shapes
from effv2_kernels.families.mobilenet_v2.weights import renamed
from effv2_kernels.reference import run

# float32 weights against float64 ones, see test_reference.
FOLDING_BOUND = 1e-6

# timm's, counted on its models.
PARAMETERS = {"mobilenetv2_100": 3_504_872, "mobilenetv2_140": 6_108_776}

SMALL = SMALL_MOBILE[0].architecture


@functools.cache
def timm():
    return pytest.importorskip("timm")


@functools.cache
def torchvision():
    return pytest.importorskip("torchvision")


MODELS = {
    "timm 050": lambda: timm().create_model("mobilenetv2_050"),
    "timm 110d": lambda: timm().create_model("mobilenetv2_110d"),
    "timm 035, 1 channel, 7 classes": lambda: timm().create_model(
        "mobilenetv2_035", in_chans=1, num_classes=7
    ),
    "timm 050 without classifier": lambda: timm().create_model("mobilenetv2_050", num_classes=0),
    "timm 050 maps": lambda: timm().create_model("mobilenetv2_050", features_only=True),
    "timm 050 some maps": lambda: timm().create_model(
        "mobilenetv2_050", features_only=True, out_indices=(1, 3)
    ),
    "torchvision 0.75": lambda: torchvision().models.mobilenet_v2(width_mult=0.75, num_classes=9),
    "torchvision 1.0": lambda: torchvision().models.mobilenet_v2(),
    "own 050": lambda: create_model("mobilenetv2_050"),
    "own 050 without classifier": lambda: create_model("mobilenetv2_050", num_classes=0),
    "own 035 maps": lambda: create_model("mobilenetv2_035", features_only=True, in_channels=2),
    "own, another architecture": lambda: MobileNetV2(SMALL, num_classes=5),
}


@pytest.fixture(params=MODELS)
def model(request, generator):
    return randomise(MODELS[request.param](), generator)


def images(model, generator, size=(49, 70)):
    channels = next(model.parameters()).shape[1]
    return torch.randn(2, channels, *size, generator=generator, dtype=torch.float64)


def listed(y):
    return y if isinstance(y, list) else [y]


def test_the_blocks_are_the_model(model, generator):
    network = sources.read(model)
    x = images(model, generator)
    with torch.inference_mode():
        found, expected = listed(run(network, x)), listed(model.double()(x))
    for y, e in zip(found, expected, strict=True):
        assert relative_error(y, e) < FOLDING_BOUND


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_variants_are_timms(variant):
    with torch.device("meta"):
        ours, theirs = MobileNetV2(VARIANTS[variant]), timm().create_model(variant)
    expected = {key: t.shape for key, t in renamed(theirs.state_dict()).items()}
    assert {key: t.shape for key, t in ours.state_dict().items()} == expected
    if variant in PARAMETERS:
        assert sum(p.numel() for p in ours.parameters()) == PARAMETERS[variant]


@pytest.mark.parametrize("width", [0.1, 0.5, 0.75, 1.0, 1.3, 2.0])
def test_any_width_is_torchvisions(width):
    with torch.device("meta"):
        ours, theirs = MobileNetV2(scaled(width)), torchvision().models.mobilenet_v2(width_mult=width)
    expected = {key: t.shape for key, t in theirs.state_dict().items()}
    assert {key: t.shape for key, t in ours.state_dict().items()} == expected
    assert list(ours.state_dict()) == list(theirs.state_dict())


@pytest.mark.parametrize("origin", ["timm", "torchvision"])
@pytest.mark.parametrize("features_only", [False, True])
def test_checkpoints(origin, features_only, generator, tmp_path):
    if origin == "timm":
        theirs = randomise(timm().create_model("mobilenetv2_100", num_classes=6), generator)
        maps = timm().create_model("mobilenetv2_100", features_only=True).eval()
        maps.load_state_dict(theirs.state_dict(), strict=False)
    else:
        theirs = maps = randomise(torchvision().models.mobilenet_v2(num_classes=6), generator)
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "m.pth")
    options = {"features_only": True} if features_only else {"num_classes": 6}
    ours = create_model("mobilenetv2_100", checkpoint=tmp_path / "m.pth", **options).double()
    x = torch.randn(1, 3, 64, 80, generator=generator, dtype=torch.float64)
    with torch.inference_mode():
        if not features_only:
            assert relative_error(ours(x), theirs.double()(x)) < 1e-12
        elif origin == "timm":
            for y, e in zip(ours(x), maps.double()(x), strict=True):
                assert relative_error(y, e) < 1e-12
        else:
            assert relative_error(ours(x)[-1], theirs.double().features[:-1](x)) < 1e-12


@pytest.mark.parametrize(
    ("state", "options", "message"),
    [
        (lambda: MobileNetV2(VARIANTS["mobilenetv2_035"]), {"num_classes": 5}, "pass num_classes=1000"),
        (
            lambda: MobileNetV2(VARIANTS["mobilenetv2_035"], num_classes=0),
            {},
            "has no classifier: pass num_classes=0 or features_only=True",
        ),
        (lambda: MobileNetV2(VARIANTS["mobilenetv2_035"], in_channels=1), {}, "pass in_channels=1"),
        (lambda: MobileNetV2(VARIANTS["mobilenetv2_050"]), {}, "Check that the file is of this variant"),
        (lambda: nn.Linear(3, 3), {}, "is no MobileNetV2: it has neither torchvision's keys"),
    ],
)
def test_a_file_that_does_not_fit(state, options, message, tmp_path):
    torch.save(state().state_dict(), tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match=message):
        create_model("mobilenetv2_035", checkpoint=tmp_path / "m.pth", **options)


def test_options_that_the_family_does_not_have():
    with pytest.raises(ModelError, match="mobilenetv2_100 has no classifier for distillation"):
        create_model("mobilenetv2_100", distillation=True)
    with pytest.raises(
        CheckpointError, match="no published weights of mobilenetv2_075, but of mobilenetv2_050"
    ):
        create_model("mobilenetv2_075", pretrained=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"width": 0}, "positive factors"), ({"depth": -1}, "positive factors")],
)
def test_impossible_factors(options, message):
    with pytest.raises(ModelError, match=message):
        scaled(**options)


@pytest.mark.parametrize("stages", [(), (Stage(6, 0, 1, 1),), (Stage(1, 8, 1, 3),)])
def test_impossible_architectures(stages):
    with pytest.raises(ModelError, match=r"architecture needs stages|stride of a stage"):
        Architecture(8, stages, 40)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_table_of_shapes_is_that_of_the_model(variant):
    network = sources.read(MobileNetV2(VARIANTS[variant]).eval())
    table = network_shapes(VARIANTS[variant], (97, 224))
    size = (97, 224)
    for block, shape in zip(network.blocks, table, strict=True):
        assert block.kind == shape.kind
        assert size == (shape.height, shape.width)
        assert declaration.changed_options(block) == shape.options
        found = declaration.block_sizes(block)
        assert {name: found[name] for name in shape.sizes} == shape.sizes
        again = shapes.random_block(shape, seeded(720))
        assert {k: t.shape for k, t in again.tensors().items()} == {
            k: t.shape for k, t in block.tensors().items()
        }
        size = tuple(-(-n // (block.step or 1)) for n in size)


def changed(name, module):
    """Change a model in place: the submodule at this path is replaced by what ``module`` makes of it."""

    def change(model):
        path, _, last = name.rpartition(".")
        parent = model.get_submodule(path)
        setattr(parent, last, module(getattr(parent, last)))

    return change


REFUSED = {
    "another activation": (
        "torchvision",
        changed("features.3.conv.1.2", lambda _: nn.ReLU()),
        r"'features.3.conv.1.2' \(ReLU\) is unsupported: expected ReLU6",
    ),
    "another padding": (
        "torchvision",
        lambda m: setattr(m.features[0][0], "padding", (0, 0)),
        r"'features.0.0' \(Conv2d\) is unsupported: padding=\(0, 0\)",
    ),
    "another kernel": (
        "timm",
        changed(
            "blocks.2.0.conv_dw", lambda c: nn.Conv2d(c.in_channels, c.in_channels, 5, 2, 2, groups=c.groups)
        ),
        r"'blocks.2.0.conv_dw' \(Conv2d\) is unsupported: kernel_size=\(5, 5\)",
    ),
    "anti-aliasing": (
        "timm",
        changed("blocks.2.0.aa", lambda _: nn.AvgPool2d(2)),
        r"'blocks.2.0.aa' \(AvgPool2d\) is unsupported",
    ),
    "another pooling": (
        "timm",
        lambda m: setattr(m.global_pool, "pool_type", "max"),
        r"'global_pool' .* is unsupported: expected global_pool='avg'",
    ),
    "no statistics": (
        "timm",
        lambda m: setattr(m.bn2, "running_mean", None),
        r"'bn2' .*no running statistics",
    ),
    "training": ("torchvision", lambda m: m.train(), "is in training mode"),
    "a classifier of several layers": (
        "torchvision",
        changed("classifier", lambda c: nn.Sequential(c[1], nn.ReLU(), nn.Linear(5, 2))),
        r"'classifier.0' \(Linear\) is unsupported: nothing that changes its input",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case):
    origin, change, message = REFUSED[case]
    model = (
        timm().create_model("mobilenetv2_035", num_classes=5)
        if origin == "timm"
        else torchvision().models.mobilenet_v2(width_mult=0.35, num_classes=5)
    )
    model.eval()
    change(model)
    with pytest.raises(ModelError, match=message):
        sources.read(model)


@pytest.mark.parametrize("name", ["efficientnet_b0", "mobilenetv3_small_050", "mnasnet_small"])
def test_relatives_are_none_of_the_family(name):
    model = timm().create_model(name, num_classes=5).eval()
    assert sources.find_networks(model) == []
    with pytest.raises(ModelError, match="holds no EfficientFormerV2 or MobileNetV2"):
        optimize(model)


def test_parts_stand_alone(generator):
    """An inverted residual inside another model: one block each."""
    for found in (
        randomise(timm().create_model("mobilenetv2_035"), generator).blocks[1][1],
        randomise(torchvision().models.mobilenet_v2(width_mult=0.35), generator).features[3],
    ):
        parts = sources.read_parts(nn.Sequential(nn.Conv2d(3, 8, 1), found).eval())
        assert list(parts) == ["1"]
        (block,) = parts["1"]
        assert isinstance(block, blocks.FFN)
        x = torch.randn(1, block.fc1.weight.shape[1], 6, 5, generator=generator)
        with torch.inference_mode():
            y = run(blocks.Network((block,), ("",), (blocks.Feature(0),)), x)[0]
            assert_close(y, found.double()(x.double()), 2 * BLOCK_BOUND)


def test_optimize(model, generator):
    """With the verification that optimize() does; other properties are those of test_network."""
    fast = optimize(model)
    x = images(model, generator).float()
    with torch.inference_mode():
        found, expected = listed(fast(x)), listed(model.double()(x.double()))
    for y, e in zip(found, expected, strict=True):
        assert relative_error(y, e) < 1e-6
    rows = explain(fast, 64).rows
    assert all(isinstance(model.get_submodule(row.source), nn.Module) for row in rows)
