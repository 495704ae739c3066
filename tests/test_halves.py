"""Formats of 16 bits on the CPU: bf16, in which weights and maps are kept, and fp16, which is computed in.

Which of them there are is the ISA's matter: x86 has fp16 by emulation alone (make test-emulated). What is the
same for every format (any number of threads, any option of a block) is tried where fp32 is: in test_threads
and test_options.
"""

import copy
import io
import pickle

import pytest
import torch
from block_shapes import SHAPES
from checks import (
    HALF_BLOCK_BOUND,
    HALF_NETWORK_BOUND,
    TARGETS,
    as_network,
    assert_close,
    block_case,
    check_bad_image,
    check_block,
    check_layouts,
    check_not_finite,
    exact,
    exact_network,
    one_torch_thread,
    plain_pytorch,
    rebuilt,
    relative_l2,
    run_engine,
    seeded,
)
from models import FAMILIES, SMALL, SMALL_MOBILE, TINY
from test_network import like_trained

from effv2_kernels import cpu, explain, load, optimize, profile, save, shapes, sources, verification
from effv2_kernels.backends import TORCH_DTYPES
from effv2_kernels.errors import InputError, ModelError, UnavailableError
from effv2_kernels.reference import run

HALF_TARGETS = [target for target in TARGETS if target.dtype != "fp32"]
FP16_TARGETS = [target for target in HALF_TARGETS if target.dtype == "fp16"]
DTYPES = list(dict.fromkeys(target.dtype for target in HALF_TARGETS))
# How a tensor is converted, as messages have it.
METHODS = {"bf16": r"x.bfloat16\(\)", "fp16": r"x.half\(\)"}

pytestmark = pytest.mark.skipif(not HALF_TARGETS, reason="no ISA of this machine has a format of 16 bits")

on_every_target = pytest.mark.parametrize("target", HALF_TARGETS, ids=str)
on_fp16 = pytest.mark.parametrize("target", FP16_TARGETS, ids=str)


@pytest.fixture(autouse=True)
def quiet_pytorch():
    with one_torch_thread():
        yield


@pytest.fixture(params=DTYPES)
def dtype(request):
    return request.param


@pytest.fixture(params=FAMILIES, ids=lambda spec: spec.name)
def model_and_images(request, dtype):
    g = seeded(800)
    return like_trained(request.param.build(g), g), request.param.images(g, 3).to(TORCH_DTYPES[dtype])


@pytest.fixture
def fast_and_images(model_and_images, dtype):
    model, images = model_and_images
    return optimize(model, dtype=dtype), images


def case(spec, target, batch=2, **options):
    """(network, images in the target's dtype, float64 outputs)."""
    g = seeded(801)
    network = sources.read(like_trained(spec.build(g, **options), g))
    images = target.kept(spec.images(g, batch))
    return network, images, exact_network(network, images)


@pytest.mark.parametrize("name", SHAPES)
@on_every_target
def test_blocks(name, target):
    check_block(SHAPES[name], target, batch=2)
    check_layouts(SHAPES[name], target)


@pytest.mark.parametrize("name", SHAPES)
@on_every_target
def test_blocks_round_what_they_keep(name, target):
    """The error is that of the format, and not of fp32 with rounded outputs, which no weight would change."""
    block, x, expected = block_case(SHAPES[name], 2, dtype=target.torch_dtype)
    network = as_network(block)
    (y,) = target.engine(network).run(x)
    (in_fp32,) = cpu.Engine(network, target.isa).run(x.float())
    assert y.dtype == target.torch_dtype
    assert not torch.equal(y, target.kept(in_fp32))
    assert relative_l2(y, expected) > relative_l2(in_fp32, expected)


@pytest.mark.parametrize("name", SHAPES)
@on_every_target
def test_values_that_are_not_finite(name, target):
    check_not_finite(SHAPES[name], target, ((1, 0),))


@pytest.mark.parametrize("spec", [*SMALL, *SMALL_MOBILE], ids=lambda spec: spec.name)
@on_every_target
def test_networks(spec, target):
    network, images, (expected,) = case(spec, target)
    (y,) = run_engine(target.engine(network), images)
    assert_close(y, expected, target.network_bound, f"{spec.name} on {target}", target.torch_dtype)


@pytest.mark.parametrize("norms", [None, (True, False, True, True)])
@on_every_target
def test_feature_maps(norms, target):
    network, images, expected = case(SMALL[0], target, features_only=True, feature_norms=norms)
    outputs = run_engine(target.engine(network), images)
    for i, (y, e) in enumerate(zip(outputs, expected, strict=True)):
        assert_close(y, e, target.network_bound, f"feature {i} on {target}", target.torch_dtype)
        assert y.is_contiguous(memory_format=torch.channels_last)


@on_every_target
def test_values_that_are_not_finite_stay_in_their_image(target):
    network, images, _ = case(SMALL[0], target, 3, features_only=True)
    engine = target.engine(network)
    for value in (torch.nan, torch.inf):
        check_bad_image(engine, network, images, value, f"{value} on {target}", 4 * target.network_bound)


def test_optimize(model_and_images, dtype):
    """Asked for, or because the tensors of the model have it: with the verification that optimize() does."""
    model, images = model_and_images
    with plain_pytorch():
        expected = copy.deepcopy(model).double()(images.double())
        own = copy.deepcopy(model).to(images.dtype)
        expected_of_own = copy.deepcopy(own).double()(images.double())
    for fast, e in (
        (optimize(model, dtype=dtype), expected),
        (optimize(own), expected_of_own),
        (optimize(own, dtype=dtype), expected_of_own),
    ):
        assert fast.choice.dtype == dtype
        assert 1e-6 < fast._verified < 5e-2
        y = fast(images)
        assert_close(y, e, HALF_NETWORK_BOUND, "optimised", images.dtype)
        assert all(t.dtype == torch.float32 for t in fast.state_dict().values())
    in_fp32 = optimize(own, dtype="fp32")
    assert_close(in_fp32(images.float()), expected_of_own, 4e-6)


def test_verification_refuses_what_is_further_off(fast_and_images, model_and_images):
    """More than 16 bits explain: one weight of the classifier."""
    model, _ = model_and_images
    fast, _ = fast_and_images
    assert verification.verify(model, fast) < 2e-2
    fast.blocks[-1].weight[0] += 0.3
    with pytest.raises(ModelError, match=r"the relative error is .*, and at most 0.02 is due to rounding"):
        verification.verify(model, fast)


def test_packed_weights_take_half_the_memory(model_and_images, dtype):
    model, _ = model_and_images
    kept, full = optimize(model, dtype=dtype, verify=False), optimize(model, verify=False)
    assert kept.engine.packed_bytes < 0.75 * full.engine.packed_bytes  # biases stay in float32


def test_images_of_another_dtype_are_refused(fast_and_images, dtype):
    fast, images = fast_and_images
    message = rf"expected {TORCH_DTYPES[dtype]}, but got torch.float32.*{METHODS[dtype]}"
    with pytest.raises(InputError, match=message):
        fast(images.float())


def test_autocast_converts(fast_and_images):
    fast, images = fast_and_images
    with torch.autocast("cpu", images.dtype):
        assert torch.equal(fast(images.float()), fast(images))


def test_scalar_says_what_runs_there(model_and_images, dtype, monkeypatch, tmp_path):
    model, images = model_and_images
    message = f"on scalar the cpu backend runs fp32, not {dtype}"
    with pytest.raises(UnavailableError, match=rf"dtype='{dtype}', isa='scalar' cannot run here: {message}"):
        optimize(model, dtype=dtype, isa="scalar")
    block, x, _ = block_case(SHAPES["head"], dtype=images.dtype)
    save(optimize(model, verify=False), tmp_path / "a.effv2")
    fast = optimize(model, dtype=dtype, verify=False)
    monkeypatch.setenv("EFFV2_FORCE_ISA", "scalar")
    for refused in (
        lambda: optimize(model, dtype=dtype),
        lambda: optimize(copy.deepcopy(model).to(images.dtype)),
        lambda: load(tmp_path / "a.effv2", dtype=dtype),
        lambda: torch.ops.effv2.head(x, *block.values().values()),
        lambda: copy.deepcopy(fast)(images),
    ):
        with pytest.raises(UnavailableError, match=message):
            refused()
    assert optimize(model, dtype="fp32", verify=False).engine.isa == "scalar"


def test_explain_says_what_it_is_for(fast_and_images, dtype):
    fast, images = fast_and_images
    found = explain(fast, tuple(images.shape[2:]))
    assert f"backend cpu in {dtype}; ISA " in str(found)
    note = "kept in bf16 and computed in float32: half the memory, not faster"
    assert (note in str(found)) == (dtype == "bf16")
    assert {row.dtype for row in found.rows} == {dtype}
    # Of the folded weights, which stay as they are: packed, they are the engine's.
    assert found.bytes == sum(t.nbytes for t in fast.state_dict().values())
    assert "half the memory" not in str(explain(optimize(SMALL[0].build(seeded(802)), verify=False)))


def test_profile(fast_and_images, dtype):
    fast, images = fast_and_images
    found = profile(fast, images, repeats=2, warmup=1)
    assert found.dtype == dtype
    assert all(row.milliseconds > 0 for row in found.rows)
    assert f", {dtype}, " in str(found)


@pytest.mark.parametrize("made_in_halves", [False, True])
def test_files_hold_no_dtype(made_in_halves, model_and_images, dtype, tmp_path):
    """It is chosen at load: a file is the same whatever it was saved from."""
    model, images = model_and_images
    save(optimize(model, dtype=dtype if made_in_halves else "fp32"), tmp_path / "a.effv2")
    save(optimize(model, dtype="fp32"), tmp_path / "b.effv2")
    safetensors = pytest.importorskip("safetensors")
    with (
        safetensors.safe_open(tmp_path / "a.effv2", "pt") as a,
        safetensors.safe_open(tmp_path / "b.effv2", "pt") as b,
    ):
        assert a.metadata() == b.metadata()
        assert a.keys() == b.keys()
        assert all(torch.equal(a.get_tensor(key), b.get_tensor(key)) for key in a.keys())  # noqa: SIM118
    kept, full = load(tmp_path / "a.effv2", dtype=dtype), load(tmp_path / "a.effv2")
    assert (kept.choice.dtype, full.choice.dtype) == (dtype, "fp32")
    assert torch.equal(kept(images), optimize(model, dtype=dtype)(images))
    assert torch.equal(full(images.float()), optimize(model)(images.float()))


def test_pickles_and_copies(fast_and_images, dtype):
    fast, images = fast_and_images
    expected = fast(images)
    for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert other.choice.dtype == dtype
        assert torch.equal(other(images), expected)
        other.blocks[-1].bias.add_(1)
        assert not torch.equal(other(images), expected)
        assert torch.equal(fast(images), expected)


@pytest.mark.parametrize("name", SHAPES)
def test_ops(name, dtype):
    """A block's op runs in the precision of its input, with weights in float32."""
    block, x, expected = block_case(SHAPES[name], 2, dtype=TORCH_DTYPES[dtype])
    op, values = getattr(torch.ops.effv2, block.kind), list(block.values().values())
    y = op(x, *values)
    assert_close(y, expected, HALF_BLOCK_BOUND, name, x.dtype)
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
    """In the dtype of the images, as PyTorch's own would be."""
    fast, images = fast_and_images
    with torch.no_grad():
        # Whatever the outputs are: rounding these is another matter than what is made of their gradients.
        behind = torch.randn(fast(images).shape, generator=seeded(803)).to(images.dtype)
    x = images.clone().requires_grad_()
    fast(x).backward(behind)
    twin = images.double().requires_grad_()
    run(fast.network, twin).backward(behind.double())
    assert x.grad.dtype == images.dtype
    eager = images.clone().requires_grad_()
    run(fast.network, eager).backward(behind)
    of_pytorch = relative_l2(eager.grad, twin.grad)
    assert of_pytorch < 0.3, "the test shows nothing"
    assert relative_l2(x.grad, twin.grad) < 1.5 * of_pytorch


def test_strides(fast_and_images):
    fast, images = fast_and_images
    expected = fast(images)
    assert torch.equal(fast(images.contiguous(memory_format=torch.channels_last)), expected)
    wide = torch.full((6, *images.shape[1:3], images.shape[3] + 3), torch.nan, dtype=images.dtype)
    wide[::2, ..., 1:-2] = images
    assert torch.equal(fast(wide[::2, ..., 1:-2]), expected)


def test_a_part_of_another_model(dtype):
    """strict=False: parts in 16 bits beside layers in as many."""
    half = TORCH_DTYPES[dtype]
    model = TINY.build(seeded(803)).to(half)
    outer = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), model.stem).eval().to(half)
    fast = optimize(outer, strict=False)
    images = TINY.images(seeded(804), 2).to(half)
    with torch.no_grad():
        expected = copy.deepcopy(outer).double()(images.double())
        assert_close(fast(images), expected, HALF_NETWORK_BOUND, "parts", half)


def test_split_forward(fast_and_images):
    fast, images = fast_and_images
    if fast._tail is None:
        pytest.skip("its source keeps no norm behind the last map")
    features = fast.forward_features(images)
    assert features.dtype == images.dtype
    (expected,) = exact_network(fast.network, images)
    assert_close(fast.forward_head(features), expected, HALF_NETWORK_BOUND, "split", images.dtype)


@on_fp16
def test_the_last_value_of_fp16_and_the_next(target):
    """A step there is of 32, and what is less than half of one rounds to the last value."""
    block, x, _ = block_case(shapes.conv(8, 8, 3, 5, kernel=1), 2, dtype=torch.float16)
    x[1, 3, 2, 4] = 65504
    for bias, fits in ((0, True), (15, True), (16, False), (40, False)):
        moved = rebuilt(block, weight=torch.eye(8)[..., None, None], bias=torch.full((8,), float(bias)))
        engine = target.engine(as_network(moved))
        if fits:
            (y,) = run_engine(engine, x)
            assert float(y[1, 3, 2, 4]) == 65504
            continue
        for threads in (1, 2):
            with pytest.raises(InputError, match=r"a value went beyond 65504, .* fp16, .*: run them in fp32"):
                engine.run(x, threads)
        (y,) = run_engine(engine, x[:1])
        assert bool(y.isfinite().all())


@on_fp16
def test_an_overflow_is_an_error_of_one_call(target):
    """Weights fit, and images are finite: what the network makes of one is not, and is not returned."""
    g = seeded(805)
    model = like_trained(SMALL[0].build(g), g)
    fast = optimize(model, dtype="fp16", isa=target.isa)
    good = SMALL[0].images(g, 3).half()
    expected = fast(good)
    bad = good.clone()
    bad[1] = 120000 * torch.rand(bad[1].shape, generator=g) - 60000
    beyond = max(float(y.abs().max()) for y in outputs_of_blocks(fast.network, bad[1:2]))
    assert beyond > 65504, "the test shows nothing"
    for run_bad in (
        lambda: fast(bad),
        lambda: fast(bad[1:2]),
        lambda: profile(fast, bad, repeats=1, warmup=0),
    ):
        with pytest.raises(InputError, match="a value went beyond 65504, the largest of fp16"):
            run_bad()
        assert torch.equal(fast(good), expected)
    assert bool(optimize(model)(bad.float()).isfinite().all())


def outputs_of_blocks(network, x):
    """In float64, one after the other."""
    for block in network.blocks:
        x = exact(block, x)
        yield x


@on_fp16
def test_the_op_of_a_block_that_overflows(target, monkeypatch):
    monkeypatch.setenv("EFFV2_FORCE_ISA", target.isa)
    block, x, _ = block_case(SHAPES["ffn"], 2, dtype=torch.float16)
    values = block.values()
    values["fc2_bias"] = torch.full_like(values["fc2_bias"], 65000.0)
    with pytest.raises(InputError, match="a value went beyond 65504"):
        torch.ops.effv2.ffn(x * 1000, *values.values())


@on_fp16
def test_weights_beyond_fp16_are_refused_at_optimize(target):
    model = TINY.build(seeded(806))
    with torch.no_grad():
        model.stem.conv1.conv.weight.mul_(1e6)
    with pytest.raises(
        ModelError, match=r"conv1_weight holds the value .*, and the largest of fp16 is 65504"
    ):
        optimize(model, dtype="fp16", isa=target.isa, verify=False)
    assert optimize(model, verify=False).choice.dtype == "fp32"


@on_fp16
def test_a_processor_without_half_precision(target, monkeypatch):
    """As on a Cortex-A53: fp16 is refused with the reason, and what is not asked for by name runs in fp32."""
    native = cpu.native()
    monkeypatch.setattr(native, "formats", lambda isa: ["fp32"])
    monkeypatch.setenv("EFFV2_FORCE_ISA", target.isa)
    model = TINY.build(seeded(807))
    message = f"dtype='fp16' cannot run here: on {target.isa} the cpu backend runs fp32, not fp16"
    ways = [lambda: optimize(model, dtype="fp16")]
    if target.isa == "neon":  # others do not know it at all, which test_optimize has
        message += r"; on a CPU fp16 needs .* arithmetic in half precision \(FEAT_FP16, from Armv8.2 on\)"
        ways.append(lambda: optimize(copy.deepcopy(model).half()))
    for refused in ways:
        with pytest.raises(UnavailableError, match=message):
            refused()
    for forced in ("", target.isa, "scalar"):
        monkeypatch.setenv("EFFV2_FORCE_ISA", forced)
        fast = optimize(model, verify=False)
        assert (fast.choice.dtype, fast.engine.isa) == ("fp32", forced or native.available_isas()[0])
