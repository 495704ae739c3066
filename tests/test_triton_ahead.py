"""Kernels compiled for GPUs that are not here: nothing spills, shared memory suffices, no sum is too long."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

from effv2_kernels.errors import InputError, UnavailableError
from effv2_kernels.triton import ahead

KERNELS = {
    "scale_and_shift",
    "image_conv",
    "product",
    "depthwise",
    "mixed_softmax",
    "mixed_values",
    "conv",
    "downsample_attention",
    "two_paths",
    "mean",
    "hidden",
    "resize",
}
OF_MOBILENET = {"scale_and_shift", "image_conv", "product", "mean", "hidden"}


# Compiled once for all tests; make clean removes it.
CACHE = Path(__file__).parents[1] / "build" / "triton"


def compiled(*arguments, script="compile_ahead.py", cache=CACHE):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(cache)
    script = Path(__file__).with_name(script)
    done = subprocess.run(
        [sys.executable, str(script), *arguments],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(rows, capabilities, kernels=KERNELS):
    """Every kernel is there for every chip and fits; returns those whose first tile does not."""
    assert {(row["kernel"], row["capability"]) for row in rows} == {
        (kernel, capability) for kernel in kernels for capability in capabilities
    }
    for row in rows:
        assert row["stack"] == 0, row
        assert row["shared"] <= ahead.SHARED_BYTES[row["capability"]], row
        assert row["long_chains"] == row["overwritten"] == 0, row
    return [row for row in rows if row["number"] > 0]


S0, OTHERS = "efficientformerv2_s0", "efficientformerv2_s1,efficientformerv2_s2,efficientformerv2_l"
MOBILE, WIDER = "mobilenetv2_100", "mobilenetv2_140"


@pytest.mark.thorough
def test_every_launch_on_hopper():
    """The order of tiles is made for float16 there: the first one fits."""
    assert not check(compiled(f"{S0},{OTHERS}", "float16", "90", "all"), {90})
    assert not check(compiled(f"{MOBILE},{WIDER}", "float16", "90", "all"), {90}, OF_MOBILENET)


@pytest.mark.thorough
@pytest.mark.parametrize(("network", "kernels"), [(S0, KERNELS), (MOBILE, OF_MOBILENET)], ids=[S0, MOBILE])
@pytest.mark.parametrize(
    ("dtype", "capabilities", "which"),
    [
        ("float16", "80,120", "largest"),
        ("bfloat16", "90", "largest"),
        ("bfloat16", "80,120", "smallest"),
        ("float32", "90", "largest"),
        ("float32", "80,120", "smallest"),
    ],
)
def test_every_kernel_for_three_generations(dtype, capabilities, which, network, kernels):
    """One launch of each kernel; make test-ahead compiles all of them."""
    which = os.environ.get("EFFV2_AHEAD", which)
    check(compiled(network, dtype, capabilities, which), set(map(int, capabilities.split(","))), kernels)


def test_launches_find_what_was_compiled_in_parallel(tmp_path):
    """Triton's hash of a kernel is the same in all processes, whatever each of them compiled first."""
    (found,) = compiled(script="compile_for_launch.py", cache=tmp_path)
    assert found == {"pairs": 4, "ahead": 4, "for launches": 0}


def test_fits_means_no_stack_and_enough_shared_memory():
    assert ahead.Resources(255, 0, 101376).fits(120)
    assert not ahead.Resources(255, 0, 101377).fits(120)
    assert ahead.Resources(255, 0, 101377).fits(90)
    assert not ahead.Resources(40, 8, 0).fits(90)


def test_refused_in_the_interpreter():
    with pytest.raises(UnavailableError, match="TRITON_INTERPRET"):
        ahead.compile_ahead(None, None, 90)


def test_unknown_capability(monkeypatch):
    monkeypatch.setattr(ahead, "INTERPRETED", False)
    with pytest.raises(InputError, match=r"75, 80, 86.*got 91"):
        ahead.compile_ahead(None, None, 91)
