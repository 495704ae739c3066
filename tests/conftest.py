"""Seeds, and torchvision where its build does not match Torch's."""

import importlib.util
import os
import re
import secrets
import zlib
from pathlib import Path

import pytest
import torch

# Triton decides when it is imported whether kernels run in its interpreter; tests that compile them start a
# process of their own.
os.environ["TRITON_INTERPRET"] = "1"

SEED = int(os.environ.get("EFFV2_TEST_SEED", secrets.randbelow(2**31)))


def _define_torchvision_ops():
    """timm imports torchvision, and a torchvision built for another CUDA than Torch's does not import.

    It stumbles over operators that its native part would have defined; nothing here calls them.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return None
    version = Path(spec.origin).with_name("version.py").read_text()  # importing it imports all of torchvision
    build = re.search(r"^__version__ = '[^'+]*\+?(.*)'", version, re.MULTILINE)  # cpu, cu130, ...
    if build is None or build[1] == torch.__version__.partition("+")[2]:
        return None
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


_TORCHVISION = _define_torchvision_ops()  # the operators live as long as this object


def pytest_report_header():
    return f"seed of random inputs: {SEED} (EFFV2_TEST_SEED={SEED} repeats it)"


@pytest.fixture
def generator(request):
    """Random numbers of this test alone: the same for one seed, in whatever order the tests run."""
    return torch.Generator().manual_seed(SEED ^ zlib.crc32(request.node.nodeid.encode()))
