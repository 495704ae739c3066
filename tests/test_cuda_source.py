"""The source of CUDA kernels: what belongs into one place is nowhere else."""

from pathlib import Path

import pytest
from cuda_faults import FAULTS, source_with

ROOT = Path(__file__).resolve().parents[1] / "csrc" / "cuda"


def test_assembly_is_in_one_header():
    sources = {path.name: path.read_text(encoding="utf-8") for path in ROOT.rglob("*") if path.is_file()}
    assert [name for name, text in sources.items() if "asm" in text] == ["device.h"]


def test_kernels_know_neither_torch_nor_the_runtime():
    for path in ROOT.rglob("*"):
        if path.name != "device.h" and path.is_file():
            text = path.read_text(encoding="utf-8")
            assert "torch" not in text.lower()
            assert "threadIdx" not in text


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_faults_can_be_planted(fault):
    """Those of make test-cuda-mutations: the passages that they replace are still there."""
    assert fault.new in source_with(fault)
