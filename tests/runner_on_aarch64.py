"""effv2-run for 64-bit Arm, under emulation: the bits of the wheel, the memory it takes, and what it refuses.

Run by `make test-aarch64`. This interpreter writes networks and images, the Arm Python computes what is
expected with the wheel, and the program of `make runner-aarch64` has to give the same.
"""

import subprocess
from pathlib import Path

import numpy as np
import pytest
import runner
import torch
from checks import seeded
from models import SMALL, SMALL_MOBILE

from effv2_kernels import create_model, optimize, save
from effv2_kernels.shapes import randomise

ROOT = Path(__file__).resolve().parents[1]
ARM = ROOT / "build" / "aarch64"
MOST_MEMORY = 20e6  # of S0 in fp16
# The processor of a Pixel 6's middle cores, and the oldest, which does not compute in fp16.
CPU, OLDEST = "cortex-a76", "cortex-a53"

# Writes NAME.DTYPE.expected.npy for every pair that it is told.
EXPECTED = """
import sys
import numpy as np, torch
import effv2_kernels

folder = sys.argv[1]
for argument in sys.argv[2:]:
    name, dtype = argument.split(":")
    fast = effv2_kernels.load(f"{folder}/{name}.effv2", dtype=dtype, threads=1)
    x = torch.from_numpy(np.load(f"{folder}/{name}.npy"))
    y = fast(x.half() if dtype == "fp16" else x)
    np.save(f"{folder}/{name}.{dtype}.expected.npy", y.float().numpy())
"""


def program(cpu=CPU):
    return (ROOT / "scripts" / "on_aarch64.sh", cpu, ARM / "runner" / "effv2-run")


def s0():
    torch.manual_seed(1)
    model = create_model("efficientformerv2_s0")
    randomise(model)
    return model.eval()


NETWORKS = {
    "s0": (s0, lambda g: torch.randn(1, 3, 224, 224, generator=g)),
    "small": (lambda: SMALL[0].build(seeded(210)), lambda g: SMALL[0].images(g, 2)),
    "mobile": (lambda: SMALL_MOBILE[0].build(seeded(211)), lambda g: SMALL_MOBILE[0].images(g)),
}
CASES = [(name, dtype) for name in NETWORKS for dtype in ("fp32", "fp16")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Networks in files of halves, images, and what the wheel makes of them in both dtypes."""
    folder = tmp_path_factory.mktemp("networks")
    for name, (build, images) in NETWORKS.items():
        save(optimize(build()), folder / f"{name}.effv2", dtype="fp16")
        runner.write(folder / f"{name}.npy", images(seeded(212)))
    python = ARM / "sysroot" / "usr" / "bin" / "python3.11"
    command = [ROOT / "scripts" / "on_aarch64.sh", CPU, python, "-P", "-c", EXPECTED, folder]
    command += [f"{name}:{dtype}" for name, dtype in CASES]
    path = f"{ARM / 'project'}:{ARM / 'site'}"
    done = subprocess.run(
        [*map(str, command)],
        env={"PYTHONPATH": path, "PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_the_bits_of_the_wheel(name, dtype, folder, tmp_path):
    done = runner.run(
        *(folder / f"{name}.effv2", "--input", folder / f"{name}.npy", "--output", tmp_path / "y.npy"),
        *("--dtype", dtype, "--threads", 2, "--json"),
        prefix=program(),
    )
    network, memory = done.json["network"], done.json["memory"]
    assert (network["isa"], network["dtype"], network["file_dtype"]) == ("neon", dtype, "fp16")
    expected = torch.from_numpy(np.load(folder / f"{name}.{dtype}.expected.npy"))
    assert bool(expected.isfinite().all())
    assert float(expected.std()) > 1e-3
    assert torch.equal(torch.from_numpy(np.load(tmp_path / "y.npy")), expected)
    if (name, dtype) == ("s0", "fp16"):
        print(f"S0 in fp16: {memory}")
        assert memory["peak"] <= MOST_MEMORY
        assert memory["packed_weights"] > 3.4e6 * 2  # halves: about as many as it has parameters


def test_memory_with_the_threads_of_a_phone(folder):
    """Four are not started here; what each more takes is told by the second."""
    arenas = [
        runner.run(
            *(folder / "s0.effv2", "--input", folder / "s0.npy", "--threads", threads, "--json"),
            prefix=program(),
        ).json["memory"]
        for threads in (1, 2)
    ]
    each = arenas[1]["arena"] - arenas[0]["arena"]
    assert arenas[0]["running"] + 3 * each <= MOST_MEMORY


def test_an_older_processor_refuses_fp16_and_falls_back(folder, tmp_path):
    network = (folder / "small.effv2", "--input", folder / "small.npy")
    runner.run(*network, "--dtype", "fp16", prefix=program(OLDEST)).refused(
        runner.UNAVAILABLE, "cannot run 'neon' in fp16", "without --dtype"
    )
    done = runner.run(*network, "--output", tmp_path / "y.npy", "--json", prefix=program(OLDEST))
    assert done.json["network"]["dtype"] == "fp32"
    expected = torch.from_numpy(np.load(folder / "small.fp32.expected.npy"))
    assert torch.equal(torch.from_numpy(np.load(tmp_path / "y.npy")), expected)


def test_what_arm_does_not_have(folder):
    small = (folder / "small.effv2", "--input", folder / "small.npy")
    runner.run(*small, "--dtype", "bf16", prefix=program()).refused(
        runner.UNAVAILABLE, "'neon' has no bf16", "without --dtype"
    )
    runner.run(*small, "--isa", "avx2", prefix=program()).refused(
        runner.UNAVAILABLE, "'avx2' is an ISA of x86-64"
    )


def test_halves(tmp_path, generator):
    """Images are rounded to halves as by PyTorch, and outputs written exactly; too large ones are refused."""
    identity = runner.save_identity(tmp_path / "identity.effv2")
    how = ("--input", tmp_path / "x.npy", "--dtype", "fp16")
    x = torch.randn(1, 3, 64, 64, generator=generator) * torch.logspace(-9, 4, 64)
    x[0, 0, 0, :6] = torch.tensor([65519, 1 + 2**-11, 1 + 3 * 2**-11, 2**-24, 2**-25, 3 * 2**-25])
    runner.write(tmp_path / "x.npy", x)
    (y,) = runner.outputs(tmp_path, identity, *how, prefix=program())
    assert torch.equal(y, x.half().float())
    x[0, 0, 0, 0] = 65520
    runner.write(tmp_path / "x.npy", x)
    runner.run(identity, *how, prefix=program()).refused(runner.INPUT, "beyond what fp16 holds")


def test_a_value_that_leaves_fp16_while_it_runs(tmp_path):
    large = runner.save_overflowing(tmp_path / "large.effv2")
    how = ("--img-size", 32, "--dtype")
    runner.run(large, *how, "fp16", prefix=program()).refused(runner.OVERFLOW, "fp16")
    assert runner.run(large, *how, "fp32", prefix=program()).code == 0


def test_profile(folder):
    found = runner.run(
        *(folder / "small.effv2", "--input", folder / "small.npy", "--profile", "--json"), prefix=program()
    ).json["profile"]
    assert found["peak_gflops"] > 0
    assert all(block["share_of_peak"] > 0 for block in found["blocks"])
