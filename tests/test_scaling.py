"""How work divides among threads, as the command `scaling` counts it: no time is measured."""

from functools import cache

import pytest
from checks import ISAS, as_network, block_case
from test_threads import SHAPES

from effv2_kernels import cpu, create_model, scaling, sources
from effv2_kernels.__main__ import main
from effv2_kernels.errors import InputError, UnknownNameError

SIZE = (224, 224)

counted = pytest.mark.parametrize("isa", scaling.ISAS)


@cache
def counter(name, isa):
    return scaling.Counter(sources.read(create_model(name)), isa)


@counted
@pytest.mark.parametrize(("threads", "efficiency"), [(8, 0.80), (16, 0.65)])
def test_s0_keeps_threads_busy_with_one_image(isa, threads, efficiency):
    division = counter("efficientformerv2_s0", isa).whole(*SIZE, threads)
    assert division.cost <= division.needed / (efficiency * threads), division


@counted
@pytest.mark.parametrize(
    "name",
    [
        "efficientformerv2_s0",
        pytest.param("efficientformerv2_s1", marks=pytest.mark.thorough),
        pytest.param("efficientformerv2_s2", marks=pytest.mark.thorough),
        pytest.param("efficientformerv2_l", marks=pytest.mark.thorough),
        pytest.param("mobilenetv2_100", marks=pytest.mark.thorough),
    ],
)
def test_more_threads_never_make_it_worse(name, isa):
    network = counter(name, isa)
    costs = [network.whole(*SIZE, threads).cost for threads in range(1, 129)]
    for threads in range(1, 128):
        assert costs[threads] <= costs[threads - 1], f"{threads + 1} threads"


@counted
@pytest.mark.parametrize("name", ["efficientformerv2_s0", "efficientformerv2_l", "mobilenetv2_100"])
def test_one_thread_does_what_is_needed(name, isa):
    """But for windows at edges, and vectors that are not full: S0's nearly all are, others' less often."""
    for division in counter(name, isa).blocks(*SIZE, 1):
        assert division.done == division.once == division.busiest
        assert division.meetings == 0
        assert division.twice == 0
        assert -0.1 < division.share - 1 < (0.1 if name == "efficientformerv2_s0" else 2), division


@counted
def test_products_of_whole_panels_are_counted_exactly(isa):
    from effv2_kernels import shapes

    block, _, _ = block_case(shapes.conv(24, 64, 10, 12), 1)
    for threads in (1, 2, 5):
        (division,) = scaling.Counter(as_network(block), isa).blocks(10, 12, threads)
        assert division.done == division.needed == 64 * 24 * 9 * 10 * 12
        assert division.busiest == 64 * 24 * 9 * 12 * -(-10 // threads)
        assert division.meetings == (threads > 1)


@counted
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_threads_leave_nothing_out(shape, isa):
    block, _, _ = block_case(shape, 1)
    network = scaling.Counter(as_network(block), isa)
    for threads in (1, 2, 3, 7, 16, 40):
        (division,) = network.blocks(shape.height, shape.width, threads)
        assert division.done >= division.once
        assert division.busiest <= division.once
        assert division.busiest * threads >= division.done


@counted
def test_batches_are_dealt_out_in_whole_images(isa):
    network = counter("efficientformerv2_s0", isa)
    for threads in (2, 16, 128):
        division = network.whole(*SIZE, threads, 4 * threads)
        assert division.share == pytest.approx(network.whole(*SIZE, 1).share / threads)
        assert division.meetings == 0
        assert division.twice == 0
    # Ten images for four threads: two each, and two are shared by teams of two.
    one, two = (network.whole(*SIZE, threads) for threads in (1, 2))
    mixed = network.whole(*SIZE, 4, 10)
    assert mixed.busiest == 2 * one.busiest + two.busiest
    assert mixed.meetings == two.meetings


def test_what_counts_is_never_offered():
    native = cpu.native()
    for isa in native.isas():
        assert "counting" not in native.formats(isa)
        with pytest.raises(native.NativeError):
            native.Network(isa, 0, "counting")
    assert set(ISAS) <= set(native.isas())


def test_refusals():
    with pytest.raises(UnknownNameError, match="avx2"):
        counter("efficientformerv2_s0", "avx")
    for threads, images in ((scaling.MOST_THREADS + 1, 1), (2**31, 1), (1, 2**31)):
        with pytest.raises(InputError, match=f"4096 threads and 1048576 images .*got {threads} and {images}"):
            counter("efficientformerv2_s0", "avx2").whole(*SIZE, threads, images)
    for threads, images in ((0, 1), (1, 0)):
        with pytest.raises(InputError):
            counter("efficientformerv2_s0", "avx2").whole(*SIZE, threads, images)


def test_command(capsys, tmp_path):
    pytest.importorskip("rich")
    command = ["scaling", "--models", "efficientformerv2_s0", "--img-size", "64", "--threads", "1", "8"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "avx2" in printed
    assert "avx512" in printed
    assert "efficientformerv2_s0" in printed
    assert main([*command, "--isa", "avx3"]) == 2
    assert "avx512" in capsys.readouterr().err
    pytest.importorskip("matplotlib")
    pictures = [tmp_path / "first.svg", tmp_path / "second.svg"]
    for picture in pictures:
        assert main([*command, "--isa", "avx2", "--plot", str(picture)]) == 0
    assert "one image" in pictures[0].read_text(encoding="utf-8")
    assert pictures[0].read_bytes() == pictures[1].read_bytes()


@pytest.mark.parametrize("name", ["none/p.svg", "p.foo"])
def test_a_picture_that_cannot_be_written_is_refused_before(name, monkeypatch, tmp_path, capsys):
    pytest.importorskip("rich")
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(scaling, "divisions", lambda *_: pytest.fail("it began"))
    monkeypatch.chdir(tmp_path)
    command = ["scaling", "--models", "efficientformerv2_s0", "--img-size", "64", "--threads", "1"]
    assert main([*command, "--plot", name]) == 2
    assert f"the picture '{name}' cannot be written" in capsys.readouterr().err


def test_a_picture_changes_no_settings_of_matplotlib(tmp_path):
    matplotlib = pytest.importorskip("matplotlib")
    pytest.importorskip("rich")
    command = ["scaling", "--models", "efficientformerv2_s0", "--img-size", "64", "--threads", "1", "8"]
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        before = dict(matplotlib.rcParams)
        assert main([*command, "--plot", str(tmp_path / "p.png")]) == 0
        assert dict(matplotlib.rcParams) == before
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
