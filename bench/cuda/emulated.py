"""The CUDA module with an emulator of thread blocks in place of a GPU: `make test-cuda-emulated` makes it."""

import importlib.util
import sys
from pathlib import Path


def load_emulated(folder: str) -> None:
    """Have effv2_kernels use the module in a folder as its own."""
    (path,) = Path(folder).glob("_cuda.*")
    spec = importlib.util.spec_from_file_location("effv2_kernels._cuda", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["effv2_kernels._cuda"] = module
    spec.loader.exec_module(module)
