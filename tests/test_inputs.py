"""What a model refuses to run on, with what the message says; and the inputs that it must take."""

import pytest
import torch
from checks import NETWORK_BOUND, assert_close, exact_network, seeded
from models import SMALL

from effv2_kernels import backends, cpu, load, optimize, profile, save
from effv2_kernels.benchmarking import compare
from effv2_kernels.errors import Effv2Error, InputError, ResolutionError, UnavailableError


@pytest.fixture(scope="module")
def fast():
    return optimize(SMALL[0].build(seeded(40)))


def images(*shape):
    return torch.randn(*shape, generator=seeded(41))


REFUSED = {
    "no batch": (
        lambda: images(3, 64, 64),
        r"rank 4 \(N, 3, H, W\), but got rank 3.*unsqueeze\(0\)",
    ),
    "rank 5": (lambda: images(1, 1, 3, 64, 64), r"rank 4 \(N, 3, H, W\), but got rank 5"),
    "rank 2": (lambda: images(3, 64), r"rank 4 \(N, 3, H, W\), but got rank 2"),
    "one channel": (lambda: images(1, 1, 64, 64), r"expected 3 channels.*but got 1: \(1, 1, 64, 64\)"),
    "four channels": (lambda: images(1, 4, 64, 64), r"expected 3 channels.*but got 4"),
    "NHWC": (lambda: images(1, 64, 64, 3), r"expected 3 channels.*but got 64.*x.permute\(0, 3, 1, 2\)"),
    "float64": (
        lambda: images(1, 3, 64, 64).double(),
        r"but got torch.float64.*x.float\(\)",
    ),
    "float16": (lambda: images(1, 3, 64, 64).half(), r"expected torch.float32, but got torch.float16"),
    "bfloat16": (
        lambda: images(1, 3, 64, 64).bfloat16(),
        r"but got torch.bfloat16.*optimize\(model, dtype",
    ),
    "bytes": (lambda: images(1, 3, 64, 64).byte(), r"expected torch.float32, but got torch.uint8"),
    "empty batch": (lambda: images(0, 3, 64, 64), r"batch is empty: \(0, 3, 64, 64\).*at least one image"),
    "no rows": (lambda: images(1, 3, 0, 64), r"images have no pixels: \(1, 3, 0, 64\)"),
    "no columns": (lambda: images(1, 3, 64, 0), r"images have no pixels"),
    "sparse": (lambda: images(1, 3, 64, 64).to_sparse(), r"expected a dense tensor.*x.to_dense\(\)"),
    "meta": (lambda: images(1, 3, 64, 64).to("meta"), r"on the cpu, but got one on meta.*x.cpu\(\)"),
    "NumPy": (
        lambda: images(1, 3, 64, 64).numpy(),
        r"\(N, C, H, W\), but got ndarray.*from_numpy",
    ),
    "nested": (
        lambda: torch.nested.nested_tensor([images(3, 64, 64), images(3, 48, 64)]),
        r"one tensor \(N, C, H, W\), but got a nested tensor.*torch.stack",
    ),
    "list": (lambda: [images(3, 64, 64)], r"torch.Tensor \(N, C, H, W\), but got list"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(fast, name):
    make, message = REFUSED[name]
    with pytest.raises(InputError, match=message):
        fast(make())
    with pytest.raises(InputError, match=message):
        profile(fast, make())


@pytest.mark.parametrize("size", [(65, 64), (64, 65), (32, 64), (1, 1), (224, 224)])
def test_a_size_that_the_bias_does_not_fit(fast, size):
    """The message names the sizes that do."""
    message = rf"fit inputs of 49-64 rows by 49-64 columns, but this one is {size[0]}x{size[1]}"
    with pytest.raises(ResolutionError, match=message):
        fast(images(1, 3, *size))


@pytest.mark.parametrize("size", [(64, 64), (49, 49), (50, 61)])
def test_every_size_that_the_message_names_fits(fast, size):
    x = images(1, 3, *size)
    (expected,) = exact_network(fast.network, x)
    assert_close(fast(x), expected, 4 * NETWORK_BOUND)  # weights of any size, see test_network


def test_sizes_of_a_map_that_is_not_square():
    spec = next(spec for spec in SMALL if spec.name == "odd_map_not_square")  # 72x104
    fast = optimize(spec.build(seeded(42)))
    with pytest.raises(ResolutionError, match=r"fit inputs of 65-80 rows by 97-112 columns"):
        fast(images(1, 3, 104, 72))
    assert fast(images(1, 3, 72, 104)).shape == (1, 10)


def test_any_size_without_attention():
    """The step to the last stage is what needs a bias; features of the stages before it need none."""
    model = SMALL[3].build(seeded(43), features_only=True, resize_bias=True)
    fast = optimize(model)
    assert [tuple(y.shape[2:]) for y in fast(images(1, 3, 5, 301))] == [(2, 76), (1, 38), (1, 19), (1, 10)]


def test_errors_are_of_the_types_that_people_catch(fast):
    for error in (Effv2Error, ValueError):
        with pytest.raises(error):
            fast(images(3, 64, 64))


def test_an_error_leaves_the_model_usable(fast):
    x = images(2, 3, 64, 64)
    expected = fast(x)
    for make, _ in REFUSED.values():
        with pytest.raises(InputError):
            fast(make())
    assert torch.equal(fast(x), expected)


def test_the_input_is_not_changed(fast):
    x = images(2, 3, 64, 64)
    before = x.clone()
    fast(x)
    assert torch.equal(x, before)
    assert x._version == 0


def test_a_lazily_negated_input_is_negated(fast):
    """x.imag of a conjugate keeps the old numbers in memory and a flag beside them."""
    x = images(1, 3, 64, 64)
    lazy = torch.complex(torch.zeros_like(x), x).conj().imag
    assert lazy.is_neg()
    assert torch.equal(fast(lazy), fast(-x))


def test_parameters_and_subclasses_are_taken(fast):
    class Image(torch.Tensor):
        pass

    x = images(1, 3, 64, 64)
    expected = fast(x)
    with torch.no_grad():
        assert torch.equal(fast(torch.nn.Parameter(x)), expected)
        assert torch.equal(fast(x.as_subclass(Image)).as_subclass(torch.Tensor), expected)


def test_default_dtype_and_device_do_not_matter(fast):
    x = images(1, 3, 64, 64)
    expected = fast(x)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            y = fast(x)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(y, expected)


def test_outputs_do_not_share_memory(fast):
    x = images(1, 3, 64, 64)
    first = fast(x)
    kept = first.clone()
    fast(x + 1)
    assert torch.equal(first, kept)


@pytest.mark.parametrize("call", [lambda m: m.to("meta"), lambda m: m.to(device="meta")])
def test_a_device_without_a_backend_says_so(call):
    fast = optimize(SMALL[0].build(seeded(44)))
    moved = call(fast)
    assert moved is fast
    with pytest.raises(UnavailableError, match=r"is on meta, for which there is no backend.*to\('cpu'\)"):
        moved(images(1, 3, 64, 64))


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2", True])
def test_thread_counts_that_mean_nothing(threads):
    with pytest.raises(InputError, match=f"threads must be a positive integer or None, but got {threads!r}"):
        optimize(SMALL[0].build(seeded(45)), threads=threads)


@pytest.mark.parametrize("threads", [2**31, 10**30])
def test_more_threads_than_can_be_counted(threads, tmp_path):
    pytest.importorskip("safetensors")
    message = (
        f"threads must be a positive integer of at most 2147483647 or None, but got {threads}; more than"
    )
    model = SMALL[0].build(seeded(45))
    most = optimize(model, threads=2**31 - 1)
    x = SMALL[0].images(seeded(46))
    assert torch.equal(most(x), optimize(model, threads=1)(x))
    assert profile(most, x, repeats=1, warmup=0).threads == cpu.native().usable_cpus()
    save(most, tmp_path / "a.effv2")
    for refused in (
        lambda: optimize(model, threads=threads),
        lambda: load(tmp_path / "a.effv2", threads=threads),
        lambda: backends.choose(threads=threads),
        lambda: compare(model, x, threads=threads),
    ):
        with pytest.raises(InputError, match=message):
            refused()


def test_the_op_of_a_network_takes_no_other_threads():
    fast = optimize(SMALL[0].build(seeded(45)), verify=False)
    x = SMALL[0].images(seeded(46))
    described = fast.description()["structure"]
    for threads in (2**31, -1):
        with pytest.raises(InputError, match="threads must be a positive integer"):
            torch.ops.effv2.network(x, fast._weights(), described, "auto", "fp32", "", threads, True)
