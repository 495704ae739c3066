"""bf16 on the CPU: weights and maps are kept in it, and computed in float32.

What is the same for every format (any number of threads, any option of a block) is tried where fp32 is: in
test_threads and test_options.
"""

import copy
import io
import pickle

import pytest
import torch
from block_shapes import SHAPES
from checks import (
    BF16_BLOCK_BOUND,
    BF16_NETWORK_BOUND,
    TARGETS,
    assert_close,
    block_case,
    check_block,
    check_layouts,
    check_not_finite,
    check_same_kind,
    exact_network,
    one_torch_thread,
    plain_pytorch,
    relative_l2,
    run_engine,
    seeded,
)
from models import FAMILIES, SMALL, SMALL_MOBILE, TINY
from test_network import like_trained

from effv2_kernels import blocks, cpu, explain, load, optimize, profile, save, sources, verification
from effv2_kernels.errors import InputError, ModelError, UnavailableError
from effv2_kernels.reference import run

BF16 = torch.bfloat16
BF16_TARGETS = [target for target in TARGETS if target.dtype == "bf16"]

pytestmark = pytest.mark.skipif(not BF16_TARGETS, reason="no ISA of this machine keeps anything in bf16")

on_every_target = pytest.mark.parametrize("target", BF16_TARGETS, ids=str)
of_every_family = pytest.mark.parametrize("spec", FAMILIES, ids=lambda spec: spec.name)


@pytest.fixture(autouse=True)
def quiet_pytorch():
    with one_torch_thread():
        yield


@pytest.fixture(params=FAMILIES, ids=lambda spec: spec.name)
def model_and_images(request):
    g = seeded(800)
    return like_trained(request.param.build(g), g), request.param.images(g, 3).to(BF16)


@pytest.fixture
def fast_and_images(model_and_images):
    model, images = model_and_images
    return optimize(model, dtype="bf16"), images


def case(spec, batch=2, **options):
    """(network, images in bf16, float64 outputs)."""
    g = seeded(801)
    network = sources.read(like_trained(spec.build(g, **options), g))
    images = spec.images(g, batch).to(BF16)
    return network, images, exact_network(network, images)


@pytest.mark.parametrize("name", SHAPES)
@on_every_target
def test_blocks(name, target):
    check_block(SHAPES[name], target, batch=2)
    check_layouts(SHAPES[name], target)


@pytest.mark.parametrize("name", SHAPES)
@on_every_target
def test_blocks_round_what_they_keep(name, target):
    """The error is that of bf16, and not of fp32 with rounded outputs, which no weight would change."""
    block, x, expected = block_case(SHAPES[name], 2, dtype=BF16)
    network = blocks.Network((block,), ("",))
    (y,) = target.engine(network).run(x)
    (in_fp32,) = cpu.Engine(network, target.isa).run(x.float())
    assert y.dtype == BF16
    assert not torch.equal(y, in_fp32.to(BF16))
    assert relative_l2(y, expected) > relative_l2(in_fp32, expected)


@pytest.mark.parametrize("name", SHAPES)
@on_every_target
def test_values_that_are_not_finite(name, target):
    check_not_finite(SHAPES[name], target, ((1, 0),))


@pytest.mark.parametrize("spec", [*SMALL, *SMALL_MOBILE], ids=lambda spec: spec.name)
@on_every_target
def test_networks(spec, target):
    network, images, (expected,) = case(spec)
    (y,) = run_engine(target.engine(network), images)
    assert_close(y, expected, BF16_NETWORK_BOUND, f"{spec.name} on {target}", BF16)


@pytest.mark.parametrize("norms", [None, (True, False, True, True)])
@on_every_target
def test_feature_maps(norms, target):
    network, images, expected = case(SMALL[0], features_only=True, feature_norms=norms)
    outputs = run_engine(target.engine(network), images)
    for i, (y, e) in enumerate(zip(outputs, expected, strict=True)):
        assert_close(y, e, BF16_NETWORK_BOUND, f"feature {i} on {target}", BF16)
        assert y.is_contiguous(memory_format=torch.channels_last)


@on_every_target
def test_values_that_are_not_finite_stay_in_their_image(target):
    network, images, _ = case(SMALL[0], 3, features_only=True)
    engine = target.engine(network)
    clean = engine.run(images)
    for value in (torch.nan, torch.inf):
        bad = images.clone()
        bad[1, 0, 17, 40] = value
        with plain_pytorch():
            eager = run(network, bad.float())
        for y, c, e in zip(run_engine(engine, bad), clean, eager, strict=True):
            assert torch.equal(y[0], c[0])
            assert torch.equal(y[2], c[2])
            check_same_kind(y[1], e[1], f"{value} on {target}", 4 * BF16_NETWORK_BOUND)
        assert not bool(eager[0].isfinite().all())


def test_optimize(model_and_images):
    """Asked for, or because the tensors of the model are bf16: with the verification that optimize() does."""
    model, images = model_and_images
    with plain_pytorch():
        expected = copy.deepcopy(model).double()(images.double())
        own = copy.deepcopy(model).to(BF16)
        expected_of_own = copy.deepcopy(own).double()(images.double())
    for fast, e in (
        (optimize(model, dtype="bf16"), expected),
        (optimize(own), expected_of_own),
        (optimize(own, dtype="bf16"), expected_of_own),
    ):
        assert fast.choice.dtype == "bf16"
        assert 1e-6 < fast._verified < 5e-2
        y = fast(images)
        assert_close(y, e, BF16_NETWORK_BOUND, "optimised", BF16)
        assert all(t.dtype == torch.float32 for t in fast.state_dict().values())
    in_fp32 = optimize(own, dtype="fp32")
    assert_close(in_fp32(images.float()), expected_of_own, 4e-6)


def test_verification_refuses_what_is_further_off(fast_and_images, model_and_images):
    """More than bf16 explains: one weight of the classifier."""
    model, _ = model_and_images
    fast, _ = fast_and_images
    assert verification.verify(model, fast) < 2e-2
    fast.blocks[-1].weight[0] += 0.3
    with pytest.raises(ModelError, match=r"the relative error is .*, and at most 0.02 is due to rounding"):
        verification.verify(model, fast)


def test_packed_weights_take_half_the_memory(model_and_images):
    model, _ = model_and_images
    kept, full = optimize(model, dtype="bf16", verify=False), optimize(model, verify=False)
    assert kept.engine.packed_bytes < 0.75 * full.engine.packed_bytes  # biases stay in float32


def test_images_of_another_dtype_are_refused(fast_and_images):
    fast, images = fast_and_images
    with pytest.raises(InputError, match=r"expected torch.bfloat16, but got torch.float32.*x.bfloat16\(\)"):
        fast(images.float())


def test_autocast_converts(fast_and_images):
    fast, images = fast_and_images
    with torch.autocast("cpu", BF16):
        assert torch.equal(fast(images.float()), fast(images))


def test_scalar_says_what_runs_there(model_and_images, monkeypatch, tmp_path):
    model, images = model_and_images
    message = "on scalar the cpu backend runs fp32, not bf16"
    with pytest.raises(UnavailableError, match=rf"dtype='bf16', isa='scalar' cannot run here: {message}"):
        optimize(model, dtype="bf16", isa="scalar")
    block, x, _ = block_case(SHAPES["head"], dtype=BF16)
    save(optimize(model, verify=False), tmp_path / "a.effv2")
    fast = optimize(model, dtype="bf16", verify=False)
    monkeypatch.setenv("EFFV2_FORCE_ISA", "scalar")
    for refused in (
        lambda: optimize(model, dtype="bf16"),
        lambda: optimize(copy.deepcopy(model).to(BF16)),
        lambda: load(tmp_path / "a.effv2", dtype="bf16"),
        lambda: torch.ops.effv2.head(x, *block.values().values()),
        lambda: copy.deepcopy(fast)(images),
    ):
        with pytest.raises(UnavailableError, match=message):
            refused()
    assert optimize(model, dtype="fp32", verify=False).engine.isa == "scalar"


def test_explain_says_what_it_is_for(fast_and_images):
    fast, images = fast_and_images
    text = str(explain(fast, tuple(images.shape[2:])))
    assert "backend cpu in bf16; ISA " in text
    assert "kept in bf16 and computed in float32: half the memory, not faster" in text
    found = explain(fast, tuple(images.shape[2:]))
    assert {row.dtype for row in found.rows} == {"bf16"}
    # Of the folded weights, which stay as they are: packed, they are the engine's.
    assert found.bytes == sum(t.nbytes for t in fast.state_dict().values())
    assert "half the memory" not in str(explain(optimize(SMALL[0].build(seeded(802)), verify=False)))


def test_profile(fast_and_images):
    fast, images = fast_and_images
    found = profile(fast, images, repeats=2, warmup=1)
    assert found.dtype == "bf16"
    assert all(row.milliseconds > 0 for row in found.rows)
    assert ", bf16, " in str(found)


@pytest.mark.parametrize("made_with", ["fp32", "bf16"])
def test_files_hold_no_dtype(made_with, model_and_images, tmp_path):
    """It is chosen at load: a file is the same whatever it was saved from."""
    model, images = model_and_images
    save(optimize(model, dtype=made_with), tmp_path / "a.effv2")
    save(optimize(model, dtype="fp32"), tmp_path / "b.effv2")
    safetensors = pytest.importorskip("safetensors")
    with (
        safetensors.safe_open(tmp_path / "a.effv2", "pt") as a,
        safetensors.safe_open(tmp_path / "b.effv2", "pt") as b,
    ):
        assert a.metadata() == b.metadata()
        assert a.keys() == b.keys()
        assert all(torch.equal(a.get_tensor(key), b.get_tensor(key)) for key in a.keys())  # noqa: SIM118
    kept, full = load(tmp_path / "a.effv2", dtype="bf16"), load(tmp_path / "a.effv2")
    assert (kept.choice.dtype, full.choice.dtype) == ("bf16", "fp32")
    assert torch.equal(kept(images), optimize(model, dtype="bf16")(images))
    assert torch.equal(full(images.float()), optimize(model)(images.float()))


def test_pickles_and_copies(fast_and_images):
    fast, images = fast_and_images
    expected = fast(images)
    for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert other.choice.dtype == "bf16"
        assert torch.equal(other(images), expected)
        other.blocks[-1].bias.add_(1)
        assert not torch.equal(other(images), expected)
        assert torch.equal(fast(images), expected)


@pytest.mark.parametrize("name", SHAPES)
def test_ops(name):
    """A block's op runs in the precision of its input, with weights in float32."""
    block, x, expected = block_case(SHAPES[name], 2, dtype=BF16)
    op, values = getattr(torch.ops.effv2, block.kind), list(block.values().values())
    y = op(x, *values)
    assert_close(y, expected, BF16_BLOCK_BOUND, name, BF16)
    assert y.ndim != 4 or y.is_contiguous(memory_format=torch.channels_last)
    torch.library.opcheck(
        op.default, (x, *values), test_utils=["test_schema", "test_autograd_registration", "test_faketensor"]
    )


def test_compiles_without_a_graph_break(fast_and_images):
    fast, images = fast_and_images
    compiled = torch.compile(fast, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for batch in (3, 1):
            assert torch.equal(compiled(images[:batch]), fast(images[:batch]))


@pytest.mark.filterwarnings("ignore:No complete tensor found in the group")  # the weights are views of one
def test_exports_runs_and_loads_again(fast_and_images):
    fast, images = fast_and_images
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(fast, (images,), dynamic_shapes=({0: batch},))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for n in (3, 1):
        assert torch.equal(loaded(images[:n]), fast(images[:n]))


def test_gradients_are_those_of_the_reference(fast_and_images):
    """In bf16, as PyTorch's own would be."""
    fast, images = fast_and_images
    x = images.clone().requires_grad_()
    fast(x).float().square().sum().backward()
    twin = images.double().requires_grad_()
    run(fast.network, twin).square().sum().backward()
    assert x.grad.dtype == BF16
    eager = images.clone().requires_grad_()
    run(fast.network, eager).float().square().sum().backward()
    of_pytorch = relative_l2(eager.grad, twin.grad)
    assert of_pytorch < 0.3, "the test shows nothing"
    assert relative_l2(x.grad, twin.grad) < 1.5 * of_pytorch


def test_strides(fast_and_images):
    fast, images = fast_and_images
    expected = fast(images)
    assert torch.equal(fast(images.contiguous(memory_format=torch.channels_last)), expected)
    wide = torch.full((6, *images.shape[1:3], images.shape[3] + 3), torch.nan, dtype=BF16)
    wide[::2, ..., 1:-2] = images
    assert torch.equal(fast(wide[::2, ..., 1:-2]), expected)


def test_a_part_of_another_model(tmp_path):
    """strict=False: parts in bf16 beside layers in bf16."""
    model = TINY.build(seeded(803)).to(BF16)
    outer = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), model.stem).eval().to(BF16)
    fast = optimize(outer, strict=False)
    images = TINY.images(seeded(804), 2).to(BF16)
    with torch.no_grad():
        assert_close(fast(images), copy.deepcopy(outer).double()(images.double()), 2e-2, "parts", BF16)


def test_split_forward(fast_and_images):
    fast, images = fast_and_images
    if fast._tail is None:
        pytest.skip("its source keeps no norm behind the last map")
    features = fast.forward_features(images)
    assert features.dtype == BF16
    assert_close(fast.forward_head(features), exact_network(fast.network, images)[0], 2e-2, "split", BF16)
