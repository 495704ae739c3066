"""The reference: the same function as timm's model, and the blocks the same function as the reference."""

import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from checks import rebuilt
from models import SMALL, SMALL_MOBILE, randomise, relative_error

from effv2_kernels import blocks, sources
from effv2_kernels.errors import InputError, ModelError, ResolutionError, UnknownNameError
from effv2_kernels.reference import VARIANTS, Architecture, EfficientFormerV2, create_model, run, run_block
from effv2_kernels.reference.attention_bias import bias_for, distance_index, gather

# Counted on the published models at 224x224.
PARAMETERS = {"s0": 3_600_256, "s1": 6_185_560, "s2": 12_710_112, "l": 26_322_288}

# float32 weights against float64 ones: half a unit in the last place of each, 6e-8 of each weight, which
# random signs keep from adding up over the layers.
FOLDING_BOUND = 1e-6


@functools.cache
def timm():
    return pytest.importorskip("timm")


@pytest.mark.parametrize("variant", PARAMETERS)
def test_same_function_as_timm(variant, generator):
    name = f"efficientformerv2_{variant}"
    theirs = randomise(timm().create_model(name, img_size=96), generator).double()
    ours = EfficientFormerV2(VARIANTS[name], img_size=96).double().eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 96, 96, generator=generator, dtype=torch.float64)
    with torch.inference_mode():
        assert relative_error(ours(x), theirs(x)) < 1e-12


@pytest.mark.parametrize("variant", PARAMETERS)
def test_parameter_counts(variant):
    with torch.device("meta"):
        model = EfficientFormerV2(VARIANTS[f"efficientformerv2_{variant}"])
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[variant]


def test_same_function_as_timm_not_square(generator):
    options = {"img_size": (96, 160), "num_classes": 7}
    theirs = randomise(timm().create_model("efficientformerv2_s0", in_chans=1, **options), generator).double()
    ours = EfficientFormerV2(VARIANTS["efficientformerv2_s0"], in_channels=1, **options).double().eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 1, 96, 160, generator=generator, dtype=torch.float64)
    with torch.inference_mode():
        assert relative_error(ours(x), theirs(x)) < 1e-12


@pytest.mark.parametrize("spec", [*SMALL, *SMALL_MOBILE], ids=lambda s: s.name)
def test_folded_blocks_are_the_model(spec, generator):
    model = spec.build(generator)
    network = sources.read(model)
    x = spec.images(generator, batch=2).double()
    with torch.inference_mode():
        assert relative_error(run(network, x), model.double()(x)) < FOLDING_BOUND


@pytest.mark.parametrize("norms", [None, (False, True, True, True)])
def test_folded_features_are_the_models(norms, generator):
    spec = SMALL[0]
    model = spec.build(generator, features_only=True, feature_norms=norms)
    network = sources.read(model)
    x = spec.images(generator, batch=2).double()
    with torch.inference_mode():
        expected = model.double()(x)
        actual = run(network, x)
    assert [f.shape[1] for f in expected] == list(spec.architecture.widths)
    assert len(actual) == 4
    for a, e in zip(actual, expected, strict=True):
        assert relative_error(a, e) < FOLDING_BOUND


@pytest.mark.parametrize("size", [(64, 64), (96, 64), (50, 77), (32, 32)])
def test_resized_bias(size, generator):
    spec = SMALL[0]
    model = spec.build(generator, features_only=True, resize_bias=True)
    network = sources.read(model)
    x = torch.randn(1, 3, *size, generator=generator, dtype=torch.float64)
    with torch.inference_mode():
        expected = model.double()(x)
        actual = run(network, x)
    for a, e in zip(actual, expected, strict=True):
        assert relative_error(a, e) < FOLDING_BOUND


def test_distances():
    rows, cols = 3, 4
    for stride in (1, 2):
        index = distance_index(rows, cols, stride)
        queries = [(r, c) for r in range(0, rows, stride) for c in range(0, cols, stride)]
        keys = [(r, c) for r in range(rows) for c in range(cols)]
        expected = [[abs(q[0] - k[0]) * cols + abs(q[1] - k[1]) for k in keys] for q in queries]
        assert index.tolist() == expected


def test_bias_of_another_size_is_resized_bicubically(generator):
    table = torch.randn(2, 4, 6, generator=generator)
    expected = F.interpolate(gather(table, 2)[None], size=(2 * 3, 3 * 5), mode="bicubic")[0]
    assert torch.equal(bias_for(table, (3, 5), query_stride=2, resize=True), expected)


def attention_by_the_docstring(x, b):
    """One head, query and key at a time, as blocks.Attention says it."""
    n, _, height, width = x.shape
    z = F.conv2d(x, b.dw.weight[:, None], b.dw.bias, stride=2, padding=1, groups=x.shape[1])
    rows, cols = z.shape[2:]
    tokens = z.flatten(2).transpose(1, 2) @ b.qkv.weight.T + b.qkv.bias
    q, k, v = tokens.split([b.heads * b.key_dim] * 2 + [b.heads * b.value_dim], -1)
    position = [(r, c) for r in range(rows) for c in range(cols)]
    logits = torch.zeros(n, b.heads, rows * cols, rows * cols, dtype=x.dtype)
    for h in range(b.heads):
        for g in range(b.heads):
            part = slice(g * b.key_dim, (g + 1) * b.key_dim)
            logits[:, h] += b.mix1_weight[h, g] * q[..., part] @ k[..., part].transpose(1, 2)
        for i, (ri, ci) in enumerate(position):
            for j, (rj, cj) in enumerate(position):
                logits[:, h, i, j] += b.bias[h, abs(ri - rj), abs(ci - cj)]
    p = logits.softmax(-1)
    u = torch.zeros(n, rows * cols, b.heads * b.value_dim, dtype=x.dtype)
    for h in range(b.heads):
        mixed = sum(b.mix2.weight[h, g] * p[:, g] for g in range(b.heads)) + b.mix2.bias[h]
        part = slice(h * b.value_dim, (h + 1) * b.value_dim)
        u[..., part] = mixed @ v[..., part]
    v_map = v.transpose(1, 2).reshape(n, -1, rows, cols)
    u = u.transpose(1, 2).reshape(n, -1, rows, cols)
    u = u + F.conv2d(v_map, b.local.weight[:, None], b.local.bias, padding=1, groups=v_map.shape[1])
    u = F.interpolate(u, scale_factor=2, mode="bilinear", align_corners=False)[:, :, :height, :width]
    return x + F.conv2d(F.gelu(u), b.proj.weight[:, :, None, None], b.proj.bias)


def test_attention_is_its_docstring(generator):
    def r(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def layer(*shape):
        return blocks.Layer(r(*shape), r(shape[0]))

    heads, key, value, channels = 3, 4, 5, 7
    block = blocks.Attention(
        qkv=layer(heads * (2 * key + value), channels),
        local=layer(heads * value, 3, 3),
        mix1_weight=r(heads, heads),
        bias=r(heads, 2, 3),
        mix2=layer(heads, heads),
        proj=layer(channels, heads * value),
        heads=heads,
        key_dim=key,
        value_dim=value,
        stride=2,
        dw=layer(channels, 3, 3),
    )
    x = r(2, channels, 3, 5)
    assert relative_error(run_block(block, x), attention_by_the_docstring(x, block)) < 1e-12


@pytest.mark.parametrize("spec", [SMALL[0], SMALL_MOBILE[0]], ids=lambda s: s.name)
def test_blocks_are_differentiable(spec, generator):
    network = sources.read(spec.build(generator))
    x = spec.images(generator).double().requires_grad_()
    for block in network.blocks:
        weights = {name: t.double().requires_grad_() for name, t in block.tensors().items()}
        x = run_block(rebuilt(block, **weights), x)
        grads = torch.autograd.grad(x.square().sum(), weights.values(), retain_graph=True)
        assert all(bool(g.abs().sum() > 0) and bool(g.isfinite().all()) for g in grads), block.kind


def test_create_model_is_ready_to_use():
    model = create_model("efficientformerv2_s0", num_classes=5, img_size=64)
    assert not any(m.training for m in model.modules())
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 5)


def test_unknown_name_gives_the_nearest():
    with pytest.raises(UnknownNameError, match=r"efficientformer_s0.*Did you mean 'efficientformerv2_s0'"):
        create_model("efficientformer_s0")


def test_sizes_in_any_sequence():
    for size in (64, np.int64(64), [64, 64], np.array([64, 64]), torch.Size((64, 64))):
        assert create_model("efficientformerv2_s0", img_size=size).img_size == (64, 64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"img_size": (224,)},
            r"img_size must be rows and columns, or one .*, but got \(224,\)",
        ),
        ({"img_size": "224"}, "img_size must be a whole number, but got '224'"),
        ({"img_size": (64, 64.5)}, "columns of img_size must be a whole number, but got 64.5"),
        ({"num_classes": "10"}, "num_classes must be a whole number, but got '10'"),
        ({"num_classes": None}, "num_classes must be a whole number, but got None"),
        ({"in_channels": 3.0}, "in_channels must be a whole number, but got 3.0"),
    ],
)
def test_numbers_that_are_none(options, message):
    for name in ("efficientformerv2_s0", *(["mobilenetv2_100"] if "img_size" not in options else [])):
        with pytest.raises(InputError, match=message):
            create_model(name, **options)


def test_another_resolution():
    model = create_model("efficientformerv2_s0", img_size=64)
    with pytest.raises(ResolutionError, match=r"map of 2x2 tokens.*gives 3x2.*the model was made for"):
        model(torch.zeros(1, 3, 96, 64))


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 4, 64, 64)])
def test_input_of_another_shape(shape):
    model = create_model("efficientformerv2_s0", img_size=64)
    with pytest.raises(InputError, match=r"takes images \(N, 3, H, W\)"):
        model(torch.zeros(shape))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": (16, 24, 40)}, "4 stages"),
        ({"widths": (15, 24, 40, 56)}, "first one even"),
        ({"attention_blocks": (3, 1)}, "stage 3 has 2 blocks"),
        ({"ratios": (4, 4, (4, 4, 4), 4)}, "stage 3 needs 2 expansion ratios"),
        ({"ratios": (4, 4)}, "one entry for each of 4 stages"),
        ({"ratios": 0.01}, "at least one hidden channel"),
    ],
)
def test_impossible_architectures(options, message):
    with pytest.raises(ModelError, match=message):
        Architecture(**({"widths": (16, 24, 40, 56), "depths": (1, 1, 2, 2)} | options))
