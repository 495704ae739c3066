"""The source of CUDA kernels: what belongs into one place is nowhere else."""

from pathlib import Path

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
