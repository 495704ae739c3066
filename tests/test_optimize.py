"""``optimize``: what it takes, leaves, refuses and returns."""

import copy

import pytest
import torch
from checks import NETWORK_BOUND, assert_close, plain_pytorch, seeded
from models import SMALL, randomise
from torch import nn

import effv2_kernels
from effv2_kernels import cpu, optimize
from effv2_kernels.errors import ModelError, UnavailableError, UnknownNameError
from effv2_kernels.model import OptimizedModel, identity

SPEC = SMALL[0]


@pytest.fixture
def model():
    return SPEC.build(seeded(50))


@pytest.fixture
def images():
    return SPEC.images(seeded(51), 2)


def expected_of(model, images):
    """What the model itself gives, in float64; outputs as a list."""
    with plain_pytorch():
        y = copy.deepcopy(model).double()(images.double())
    return list(y) if isinstance(y, (list, tuple)) else [y]


def assert_same_function(fast, model, images):
    with torch.no_grad():
        found = fast(images)
    found = [found] if isinstance(found, torch.Tensor) else found
    for y, e in zip(found, expected_of(model, images), strict=True):
        assert_close(y, e, 4 * NETWORK_BOUND)  # weights of any size, see test_network


class Detector(nn.Module):
    """A larger module around a backbone, with buffers, other layers, and a call of its own."""

    def __init__(self, backbone, g):
        super().__init__()
        self.backbone = backbone
        self.neck = nn.ModuleDict({"lateral": nn.Conv2d(56, 8, 1)})
        self.register_buffer("mean", torch.rand(3, 1, 1, generator=g))
        self.eval()

    def forward(self, images, *, scale=1.0):
        features = self.backbone((images - self.mean) * scale)
        return self.neck["lateral"](features[-1]), len(features)


@pytest.fixture
def detector():
    g = seeded(52)
    return Detector(SPEC.build(g, features_only=True), g)


def test_the_readme_example(model, images):
    fast = effv2_kernels.optimize(model)
    assert isinstance(fast, nn.Module)
    assert_same_function(fast, model, images)


@pytest.mark.parametrize("norms", [None, (True, True, False, True)])
def test_feature_maps_come_as_a_list(images, norms):
    model = SPEC.build(seeded(53), features_only=True, feature_norms=norms)
    fast = optimize(model)
    assert type(fast(images)) is list
    assert_same_function(fast, model, images)


def test_models_of_timm():
    timm = pytest.importorskip("timm")
    g = seeded(54)
    images = torch.randn(1, 3, 96, 96, generator=g)
    for options in (
        {},
        {"num_classes": 7},
        {"features_only": True},
        {"features_only": True, "out_indices": (1, 3)},
    ):
        model = timm.create_model("efficientformerv2_s0", img_size=96, **options)
        randomise(model, g)
        fast = optimize(model)
        with plain_pytorch():
            assert type(fast(images)) is type(model(images))
        assert_same_function(fast, model, images)


def snapshot(model):
    """Everything about a module that optimize() could have touched."""
    modules = dict(model.named_modules(remove_duplicate=False))
    return {
        "modules": {path: id(m) for path, m in modules.items()},
        "attributes": {
            path: {k: (id(v), repr(v)) for k, v in vars(m).items() if not k.startswith("_")}
            for path, m in modules.items()
        },
        "hooks": {
            path: [list(v) for k, v in vars(m).items() if "hooks" in k and v] for path, m in modules.items()
        },
        "tensors": {
            name: (id(t), t._version, t.data_ptr(), t.requires_grad, t.grad)
            for name, t in [*model.named_parameters(), *model.named_buffers()]
        },
    }


@pytest.mark.parametrize("strict", [True, False])
def test_the_given_model_is_left_untouched(detector, images, strict):
    detector.neck.register_forward_hook(lambda *a: None)
    before, values = snapshot(detector), copy.deepcopy(detector.state_dict())
    fast = optimize(detector, strict=strict)
    fast(images)
    assert snapshot(detector) == before
    for name, value in detector.state_dict().items():
        assert torch.equal(value, values[name])


def test_later_changes_of_the_model_do_not_reach_the_result(model, images):
    fast = optimize(model)
    before = fast(images)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    assert torch.equal(fast(images), before)


def test_a_backbone_inside_a_larger_module(detector, images):
    fast = optimize(detector)
    assert type(fast) is Detector
    assert isinstance(fast.backbone, OptimizedModel)
    assert fast.neck["lateral"] is not detector.neck["lateral"]
    with torch.no_grad():
        found, count = fast(images, scale=0.5)
        expected, _ = copy.deepcopy(detector).double()(images.double(), scale=0.5)
    assert count == 4
    assert_close(found, expected, 4 * NETWORK_BOUND)


def test_the_replaced_part_is_not_copied(detector, images, monkeypatch):
    def refuse(*args):
        raise AssertionError("the backbone was copied")

    monkeypatch.setattr(type(detector.backbone), "__deepcopy__", refuse, raising=False)
    optimize(detector)(images)


def test_one_backbone_in_two_places_stays_one(images):
    g = seeded(55)
    shared = SPEC.build(g)
    pair = nn.ModuleDict({"a": shared, "b": nn.Sequential(nn.Identity(), shared), "c": SPEC.build(g)}).eval()
    fast = optimize(pair)
    assert fast["a"] is fast["b"][1]
    assert fast["a"] is not fast["c"]
    for key in pair:
        assert_same_function(fast[key], pair[key], images)


class Changed(nn.Module):
    """Someone's variation: the parts of an EfficientFormerV2 with a layer of their own between them."""

    def __init__(self, model):
        super().__init__()
        self.stem = model.stem
        self.extra = nn.Conv2d(16, 16, 1)
        self.first = model.stages[0].blocks
        self.rest = model.stages[1:]
        self.eval()

    def forward(self, x):
        return self.rest(self.first(torch.sigmoid(self.extra(self.stem(x)))))


def test_strict_names_what_it_cannot_optimise(model):
    with pytest.raises(ModelError) as error:
        optimize(Changed(model))
    message = str(error.value)
    for part in ("Changed", "'stem'", "'first.0'", "'rest.3.downsample'", "'extra' (Conv2d)", "strict=False"):
        assert part in message, message


def test_not_strict_optimises_the_parts_that_it_knows(model, images):
    changed = Changed(model)
    fast = optimize(changed, strict=False)
    parts = {path for path, m in fast.named_modules() if isinstance(m, OptimizedModel)}
    assert {"stem", "first.0", "rest.1.downsample", "rest.3.downsample", "rest.3.blocks.1"} <= parts
    assert type(fast.extra) is nn.Conv2d
    assert_same_function(fast, changed, images)


def test_not_strict_leaves_a_network_that_it_cannot_read(model, images):
    """A block with a hook stays in PyTorch, where its hook runs; the others do not."""
    model.stages[0].blocks[0].register_forward_hook(lambda module, inputs, output: output / 2)
    with pytest.raises(ModelError, match=r"stages.0.blocks.0.*has forward hooks"):
        optimize(model)
    fast = optimize(model, strict=False)
    assert not isinstance(fast.stages[0].blocks[0], OptimizedModel)
    assert isinstance(fast.stages[1].blocks[0], OptimizedModel)
    assert_same_function(fast, model, images)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    ("other", "named"),
    [
        (nn.Linear(4, 4), "Linear"),
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), "Sequential"),
        (nn.Identity(), "Identity"),
    ],
)
def test_a_module_that_is_no_efficientformer(other, named, strict):
    with pytest.raises(
        ModelError, match=rf"holds no EfficientFormerV2.*\. Not recognised: .*{named}.*Known origins"
    ):
        optimize(other.eval(), strict=strict)


@pytest.mark.parametrize("other", [None, "efficientformerv2_s0", torch.zeros(3), nn.Conv2d])
def test_not_a_module(other):
    with pytest.raises(ModelError, match=r"takes a torch.nn.Module, but got"):
        optimize(other)


def test_a_model_in_training_mode(model):
    model.train()
    with pytest.raises(ModelError, match=r"is in training mode: call model.eval\(\) first"):
        optimize(model)
    model.eval()
    model.stages[1].blocks[0].mlp.fc1.bn.train()
    with pytest.raises(ModelError, match=r"stages.1.blocks.0.mlp.fc1.bn.*is in training mode"):
        optimize(model)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite(model, value):
    with torch.no_grad():
        model.stages[2].blocks[0].mlp.fc2.conv.weight[3, 1] = value
    with pytest.raises(
        ModelError, match=r"stages.2.blocks.0.mlp.fc2.conv.weight' holds 1 values that are not finite"
    ):
        optimize(model)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_a_model_of_another_dtype(model, dtype):
    if dtype == torch.float16 and "neon" in cpu.native().isas():
        pytest.skip("64-bit Arm may compute in float16: see test_halves")
    lacks = r"; on a CPU fp16 needs a 64-bit Arm.* as well" if dtype == torch.float16 else ""
    message = rf"is {dtype} and so are the inputs.* on cpu{lacks}\. Call model.float\(\) first"
    with pytest.raises(ModelError, match=message):
        optimize(model.to(dtype))


def test_a_model_without_data(model):
    with pytest.raises(ModelError, match=r"holds no data"):
        optimize(model.to("meta"))


def test_an_optimised_model(model):
    with pytest.raises(ModelError, match="optimised already"):
        optimize(optimize(model))


# What a dtype needs that a processor lacks, as regular expressions.
NEEDED = {
    "fp16": r"; on a CPU fp16 needs a 64-bit Arm processor with arithmetic in half precision \(FEAT_FP16, "
    r"from Armv8.2 on\); GPUs run it as well.",
    "bf16": "; on a CPU bf16 needs AVX-512 or AVX2; GPUs run it as well.",
    "int8": r"\.",
}


@pytest.mark.parametrize("dtype", NEEDED)
def test_precisions_that_this_kind_of_processor_lacks(model, dtype, monkeypatch):
    monkeypatch.setattr(cpu.native(), "formats", lambda isa: ["fp32"])
    with pytest.raises(UnavailableError, match=f"the cpu backend runs fp32, not {dtype}{NEEDED[dtype]}$"):
        optimize(model, dtype=dtype)


@pytest.mark.parametrize(
    ("dtype", "isa", "runs"),
    [("fp16", "avx2", "fp32 and bf16"), ("int8", "avx2", "fp32 and bf16"), ("bf16", "scalar", "fp32")],
)
def test_precisions_that_cannot_run(model, dtype, isa, runs):
    native = cpu.native()
    if isa not in native.available_isas():
        pytest.skip(f"this processor has no {isa}")
    others = [other for other in native.available_isas() if dtype in native.formats(other)]
    message = (
        f"dtype='{dtype}', isa='{isa}' cannot run here: on {isa} the cpu backend runs {runs}, not {dtype}"
        + (f"; on this processor {' and '.join(others)} would." if others else NEEDED[dtype])
    )
    with pytest.raises(UnavailableError, match=message):
        optimize(model, dtype=dtype, isa=isa)


def test_a_backend_for_gpus_alone(model):
    with pytest.raises(
        UnavailableError, match=r"backend='cuda', dtype='fp32' cannot run here: the cuda backend"
    ):
        optimize(model, backend="cuda")


@pytest.mark.parametrize(
    ("option", "given", "nearest"),
    [
        ("dtype", "f32", "'fp32'"),
        ("dtype", "bfp16", "'bf16'"),
        ("backend", "cpus", "'cpu'"),
        ("backend", "trition", "'triton'"),
        ("isa", "avx521", "'avx512'"),
        ("isa", "scaler", "'scalar'"),
    ],
)
def test_names_that_do_not_exist(model, option, given, nearest):
    with pytest.raises(
        UnknownNameError, match=rf"(?i)unknown {option} '{given}'. Did you mean .*{nearest}"
    ) as error:
        optimize(model, **{option: given})
    assert isinstance(error.value, ValueError)


def test_every_isa_can_be_asked_for(model, images):
    for isa in cpu.native().available_isas():
        fast = optimize(model, isa=isa)
        assert fast.engine.isa == isa
        assert_same_function(fast, model, images)


def test_an_isa_that_this_machine_lacks(model, monkeypatch):
    native = cpu.native()

    class Older:
        """The compiled module, on a machine that runs nothing but scalar code."""

        def __getattr__(self, name):
            return getattr(native, name)

        def available_isas(self):
            return ["scalar"]

    monkeypatch.setattr(cpu, "native", Older)
    other = next(isa for isa in native.isas() if isa != "scalar")
    with pytest.raises(
        UnavailableError, match=rf"isa='{other}' cannot run here: .*cannot run {other}; it can run scalar"
    ):
        optimize(model, isa=other)


FOREIGN = {"avx512": "x86-64", "avx2": "x86-64", "neon": "64-bit Arm"}


@pytest.mark.parametrize("isa", FOREIGN)
def test_an_isa_that_this_processor_lacks(model, isa, monkeypatch):
    """Those of another architecture, and the better ones of its own."""
    native = cpu.native()
    if isa in native.available_isas():
        pytest.skip("this processor has it")
    able = f"can run {', '.join(native.available_isas())}"
    reason = (
        f"or its operating system cannot run {isa}; it {able}"
        if isa in native.isas()
        else f"{isa} is an instruction set of {FOREIGN[isa]} processors, and this package is built for "
        f"others; this one .* {able}"
    )
    with pytest.raises(UnavailableError, match=rf"isa='{isa}' cannot run here: .*{reason}"):
        optimize(model, isa=isa)
    monkeypatch.setenv("EFFV2_FORCE_ISA", isa)
    with pytest.raises(UnavailableError, match=rf"EFFV2_FORCE_ISA={isa}: .*{reason}"):
        optimize(model)


def test_the_environment_chooses_the_isa(model, images, monkeypatch):
    for isa in cpu.native().available_isas():
        monkeypatch.setenv("EFFV2_FORCE_ISA", isa)
        fast = optimize(model)
        assert fast.engine.isa == isa
        assert "forced by EFFV2_FORCE_ISA" in fast.choice.why
        assert_same_function(fast, model, images)
    assert optimize(model, isa="scalar").engine.isa == "scalar"
    monkeypatch.setenv("EFFV2_FORCE_ISA", "avx1024")
    with pytest.raises(UnknownNameError, match=r"EFFV2_FORCE_ISA 'avx1024'. Did you mean 'avx512'"):
        optimize(model)
    monkeypatch.setenv("EFFV2_FORCE_ISA", "")
    assert optimize(model).engine.isa == cpu.native().available_isas()[0]


def test_weights_are_compared_by_identity():
    """Compiled and in Python, which does it where nothing was compiled."""
    a, b, equal = torch.zeros(2), torch.ones(2), torch.zeros(2)
    for same in (identity.same_objects, identity.in_python):
        assert same((a, b), ({"x": a}, {}, {"y": b}))
        assert same((), ())
        assert not same((a, b), ({"x": b, "y": a},))
        assert not same((a, b), ({"x": equal, "y": b},))
        assert not same((a, b), ({"x": a},))
        assert not same((a,), ({"x": a, "y": b},))
