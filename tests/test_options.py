"""What the options of a block say, and its parts that may be absent: held against PyTorch's own code."""

import pytest
import torch
import torch.nn.functional as F
from block_shapes import OPTIONS, SHAPES
from checks import (
    BLOCK_BOUND,
    TARGETS,
    as_network,
    assert_close,
    check_block,
    check_layouts,
    check_not_finite,
    rebuilt,
    seeded,
)
from models import TINY, relative_error
from torch import nn

import effv2_kernels.ops  # noqa: F401  (registers the ops)
from effv2_kernels import (
    backends,
    blocks,
    cpu,
    declaration,
    explain,
    optimize,
    outline,
    shapes,
    structure,
    support,
)
from effv2_kernels.errors import InputError, ModelError, UnavailableError
from effv2_kernels.inputs import fitting_sizes
from effv2_kernels.reference import run_block
from effv2_kernels.reference.activation import _FUNCTIONS, activate
from effv2_kernels.reference.attention_bias import gather

EXACT = 1e-13

ACTIVATIONS = {
    "none": torch.nn.Identity(),
    "gelu": torch.nn.GELU(),
    "relu": torch.nn.ReLU(),
    "relu6": torch.nn.ReLU6(),
    "silu": torch.nn.SiLU(),
    "hardswish": torch.nn.Hardswish(),
}


@pytest.fixture(params=OPTIONS)
def shape(request):
    return OPTIONS[request.param]


def case(shape, batch=2):
    """A block in float64, and its input."""
    g = seeded(700 + shape.height)
    block = shapes.random_block(shape, g)
    exact = rebuilt(block, **{name: t.double() for name, t in block.tensors().items()})
    return block, exact, shapes.random_input(shape, g, batch).double()


def directly(x, b):
    """The block by PyTorch's functions, one line for each layer."""
    act = ACTIVATIONS[getattr(b, "activation", "none")]

    def layer(y, part, stride=1):
        w = part.weight
        if w.ndim == 2:
            return torch.einsum("oi,nihw->nohw", w, y[..., ::stride, ::stride]) + part.bias[:, None, None]
        pad, groups = w.shape[-1] // 2, w.shape[0] if w.ndim == 3 else 1
        return F.conv2d(y, w[:, None] if w.ndim == 3 else w, part.bias, stride, pad, groups=groups)

    if b.kind == "stem":
        return act(layer(act(layer(x, b.conv1, 2)), b.conv2, 2))
    if b.kind == "conv":
        return act(layer(x, b.conv, b.stride))
    if b.kind == "ffn":
        y = x if b.fc1 is None else act(layer(x, b.fc1))
        y = layer(act(layer(y, b.dw, b.stride)), b.fc2)
        return y + x if b.residual else y
    assert b.kind == "attention", f"directly() does not know {b.kind}: its equation belongs here"
    z = x if b.dw is None else layer(x, b.dw, 2)
    n, _, rows, cols = z.shape
    q, k, v = layer(z, b.qkv).split([b.heads * b.key_dim] * 2 + [b.heads * b.value_dim], 1)
    tokens = [t.unflatten(1, (b.heads, -1)).flatten(3).transpose(2, 3) for t in (q, k, v)]
    bias = 0 if b.bias is None else gather(b.bias)
    if b.mix1_weight is None:
        mask = None if b.bias is None else bias.expand(n, -1, -1, -1)
        u = F.scaled_dot_product_attention(*tokens, attn_mask=mask, scale=1.0)
    else:
        logits = torch.einsum("hg,ngij->nhij", b.mix1_weight, tokens[0] @ tokens[1].transpose(2, 3))
        p = torch.einsum("hg,ngij->nhij", b.mix2.weight, (logits + bias).softmax(-1))
        u = (p + b.mix2.bias[:, None, None]) @ tokens[2]
    u = u.transpose(2, 3).reshape(n, -1, rows, cols)
    if b.local is not None:
        u = u + layer(v, b.local)
    if b.stride == 2:
        u = F.interpolate(u, scale_factor=2, mode="bilinear")[:, :, : x.shape[2], : x.shape[3]]
    return x + layer(act(u), b.proj)


def test_the_reference_is_pytorchs_own_code(shape):
    _, block, x = case(shape)
    if block.kind == "attention_downsample":
        # With gelu it is held elsewhere: here, that what it names is put between u and proj.
        def without_conv(b):
            return run_block(b, x) - run_block(rebuilt(b, proj_weight=0 * b.proj.weight), x)

        shows_u = rebuilt(block, proj_weight=torch.eye(24, block.proj.weight.shape[1], dtype=x.dtype))
        u = without_conv(rebuilt(shows_u, activation="none"))
        assert relative_error(without_conv(shows_u), ACTIVATIONS[block.activation](u)) < EXACT
        return
    assert relative_error(run_block(block, x), directly(x, block)) < EXACT


def test_every_option_and_absent_part_is_tried():
    """Each option with another value than it has by default."""
    made = [*SHAPES.values(), *OPTIONS.values()]
    absent = {(s.kind, name) for s in made for name in s.without}
    for kind, block_type in blocks.BLOCK_TYPES.items():
        for a in declaration.arguments(block_type):
            if a.optional and a.shape is not None and a.shape.only_if is None:
                assert (kind, a.field) in absent, f"no {kind} without {a.field}"
            if a.choice is not None or a.type is bool:
                values = {s.options.get(a.field, a.default) for s in made if s.kind == kind}
                assert values - {a.default}, f"no {kind} with another {a.field} than {a.default}"
    activations = {s.options.get("activation") for s in OPTIONS.values()}
    assert {*declaration.ACTIVATIONS} - {"gelu"} <= activations


def test_activations_are_those_that_are_declared():
    assert set(_FUNCTIONS) == set(ACTIVATIONS) == set(declaration.ACTIVATIONS)
    x = torch.linspace(-9, 9, 1001, dtype=torch.float64)
    for name, module in ACTIVATIONS.items():
        assert torch.equal(activate(x, name), module(x))


def test_ops(shape):
    """The op of a block: its shapes without data, its output by kernels and under a transform."""
    block, exact, x = case(shape, 1)
    op, values = getattr(torch.ops.effv2, block.kind).default, list(block.values().values())
    y = run_block(exact, x)
    meta = [v.to("meta") if isinstance(v, torch.Tensor) else v for v in (x.float(), *values)]
    assert op(*meta).shape == y.shape
    mapped = torch.func.vmap(lambda image: op(image[None], *values)[0])(x.float())
    assert_close(mapped, y, 1e-6, str(shape))
    assert_close(op(x.float(), *values), y, BLOCK_BOUND, str(shape))


def test_a_description_holds_them(shape):
    block, _, _ = case(shape)
    network = blocks.Network((block,), ("a",), (blocks.Feature(0),))
    text = structure.describe(network)
    again = structure.parse(text).rebuild(outline.tensors(network)).blocks[0]
    assert again.values().keys() == block.values().keys()
    for name, value in block.values().items():
        found = again.values()[name]
        assert found is value if isinstance(value, torch.Tensor) else found == value, name


def test_what_earlier_versions_know_is_written_for_them():
    """Kinds and options are theirs; what is new is left out where it has the value that they take."""
    made = [
        shapes.ffn(8, 16, 4, 4),
        shapes.conv(8, 8, 4, 4, stride=2),
        shapes.conv(8, 8, 2, 2, kernel=1, stride=2),
    ]
    built = tuple(shapes.random_block(shape, seeded(701)) for shape in made)
    network = blocks.Network(built, ("a", "b", "c"), (blocks.Feature(2),))
    text = structure.describe(network)
    entries = structure.json.loads(text)["blocks"]
    assert [(e["kind"], e["options"]) for e in entries] == [
        ("ffn", {}),
        ("conv_downsample", {}),
        ("conv", {"stride": 2}),  # of a kernel that they do not have
    ]
    rebuilt_blocks = structure.parse(text).rebuild(outline.tensors(network)).blocks
    assert [type(b) for b in rebuilt_blocks] == [blocks.FFN, blocks.Conv, blocks.Conv]
    assert list(structure.parse(text).keys) == [
        f"blocks.{i}.{name}" for i, b in enumerate(built) for name in b.tensors()
    ]


def test_an_earlier_op_gives_the_same_bits():
    block, _, x = case(shapes.conv(16, 24, 5, 6, stride=2))
    x = x.float()
    found = torch.ops.effv2.conv_downsample(x, block.conv.weight, block.conv.bias)
    assert torch.equal(found, torch.ops.effv2.conv(x, block.conv.weight, block.conv.bias, 2))
    assert torch.equal(found, cpu.Engine(as_network(block)).run(x)[0])


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_on_the_cpu(shape, target):
    check_block(shape, target)
    check_layouts(shape, target)


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_values_that_are_not_finite_on_the_cpu(shape, target):
    check_not_finite(shape, target, ((1, 0),))


def test_an_attention_without_bias_takes_any_size():
    for name, fits in (("attention without bias", False), ("attention without local", True)):
        block, _, _ = case(OPTIONS[name])
        assert (fitting_sizes(as_network(block)) is not None) == fits


@pytest.mark.parametrize(
    ("shape", "changes", "message"),
    [
        (shapes.ffn(8, 16, 4, 4), {"activation": "relu7"}, "activation is 'relu7'; expected 'none', 'gelu'"),
        (shapes.ffn(8, 16, 4, 4), {"stride": 3}, "stride is 3; expected 1 or 2"),
        (
            shapes.ffn(8, 16, 4, 4),
            {"stride": 2},
            r"residual needs stride 1.*got stride = 2.*residual=False",
        ),
        (shapes.ffn(8, 16, 4, 4, out=24), {}, "a residual needs stride 1.*in = 8, out = 24"),
        (shapes.ffn(8, 16, 4, 4, kernel=1), {}, "kernel of dw is 1; expected 3, 5 or 7"),
        (shapes.ffn(8, 16, 4, 4, kernel=4), {}, "kernel of dw is 4; expected 3, 5 or 7"),
        (shapes.ffn(8, 16, 4, 4), {"fc1_bias": None}, r"fc1_bias is missing; expected a tensor \(hidden,\)"),
        (shapes.ffn(8, 16, 4, 4), {"fc2_weight": None, "fc2_bias": None}, "fc2_weight is missing"),
        (shapes.conv(8, 16, 4, 4, kernel=2), {}, "its kernel is 2; expected 1, 3, 5 or 7"),
        (shapes.conv(8, 16, 4, 4, kernel=9), {}, "its kernel is 9; expected 1, 3, 5 or 7"),
        (shapes.conv(8, 16, 4, 4), {"activation": ""}, "activation is ''; expected 'none'"),
        (shapes.attention(8, 4, 4), {"mix1_weight": None}, "mix1_weight is missing beside mix2"),
        (shapes.attention(8, 4, 4), {"mix2_weight": None, "mix2_bias": None}, "mix2 is missing beside mix1"),
    ],
)
def test_what_does_not_fit_together_is_refused(shape, changes, message):
    with pytest.raises(ModelError, match=f"block {shape.kind}: .*{message}"):
        declaration.block_sizes(rebuilt(shapes.random_block(shape, seeded(702)), **changes))
    block = shapes.random_block(shape, seeded(702))
    values = list({**block.values(), **changes}.values())
    x = shapes.random_input(shape, seeded(703))
    with pytest.raises(InputError, match=f"block {shape.kind}: .*{message}"):
        getattr(torch.ops.effv2, shape.kind)(x, *values)


KERNELS = {
    "ffn": support.Limits({"activation": ("gelu", "relu6"), "residual": (True,)}),
    "conv": support.Limits({"kernel": (1, 3), "stride": (2,)}),
    "attention": support.Limits(absent=("local",)),
}

REFUSED = {
    "ffn with silu, 5x5": "ffn with activation='silu'",
    "ffn without expansion": "ffn without fc1",
    "ffn without residual": "ffn with residual=False",
    "conv 1x1": "conv with stride=1",
    "strided conv 7x7": "conv with kernel=7",
    "attention without talking heads": "attention without mix1_weight",
    "stem with relu": "stem",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_backend_has_no_kernels_for_is_named(name):
    block, _, _ = case(OPTIONS[name])
    assert support.refusal(KERNELS, block) == REFUSED[name]


@pytest.mark.parametrize("name", ["ffn with relu6", "attention without local"])
def test_what_a_backend_has_kernels_for_is_not_refused(name):
    block, _, _ = case(OPTIONS[name])
    assert support.refusal(KERNELS, block) is None


@pytest.mark.parametrize("strict", [True, False])
def test_the_cpu_without_kernels_for_a_kind_says_so(monkeypatch, strict):
    native = cpu.native()

    class Older:
        """The compiled module, from before there was an ffn."""

        def __getattr__(self, name):
            return getattr(native, name)

        def kinds(self):
            return [kind for kind in native.kinds() if kind != "ffn"]

    monkeypatch.setattr(cpu, "native", Older)
    model = nn.Sequential(TINY.build(seeded(704))).eval()
    if strict:
        with pytest.raises(UnavailableError, match=r"the cpu backend has no kernel for ffn\. optimize\("):
            optimize(model)
        return
    left = {part.path: part.reason for part in explain(optimize(model, strict=False)).left}
    assert any("the cpu backend has no kernel for ffn" in reason for reason in left.values()), left


def test_triton_without_kernels_for_a_kind_says_so(monkeypatch):
    kernels = pytest.importorskip("effv2_kernels.triton.kernels")
    block, _, _ = case(shapes.ffn(8, 16, 4, 4))
    monkeypatch.setattr(kernels, "LIMITS", {k: v for k, v in kernels.LIMITS.items() if k != "ffn"})
    with pytest.raises(UnavailableError, match=r"the triton backend has no kernel for ffn\. optimize"):
        kernels.pack(block, torch.float32, "cpu")


def test_the_cpu_refuses_nothing():
    for shape in (*SHAPES.values(), *OPTIONS.values()):
        backends.require_kernels("cpu", [case(shape)[0]])
