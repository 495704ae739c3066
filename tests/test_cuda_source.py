"""The source of CUDA kernels: what belongs into one place is nowhere else."""

from pathlib import Path

import pytest
from cuda_faults import FAULTS, source_with

ROOT = Path(__file__).resolve().parents[1] / "csrc" / "cuda"


def test_assembly_is_in_one_header():
    sources = {path.name: path.read_text(encoding="utf-8") for path in ROOT.rglob("*") if path.is_file()}
    assert [name for name, text in sources.items() if "asm" in text] == ["device.h"]


# What starts kernels, and asks the driver.
HOST = {"launch.cu", "runtime.h", "runtime.cpp", "entry.h"}
# CUDA C++ beyond the wrappers of device.h, which an emulator would have to know.
BEYOND = ("threadIdx", "blockIdx", "blockDim", "gridDim", "__shared__", "__sync", "__shfl", "atomicAdd")


def test_kernels_know_neither_torch_nor_the_runtime():
    seen = set()
    for path in ROOT.rglob("*"):
        if path.name == "device.h" or not path.is_file():
            continue
        text = path.read_text(encoding="utf-8")
        assert "torch" not in text.lower()
        if path.name in HOST:
            seen.add(path.name)
            continue
        assert "cuda_runtime" not in text, path.name
        assert [name for name in BEYOND if name in text] == [], path.name
    assert seen == HOST


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_faults_can_be_planted(fault):
    """Those of make test-cuda-mutations: the passages that they replace are still there."""
    assert fault.new in source_with(fault)
