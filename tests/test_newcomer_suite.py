"""`make test` leaves out what is marked thorough; what must not be left out, for any block, ISA or file."""

import pytest
from checks import ISAS
from conftest import EVERY_TEST, SKIPPED_FILES

from effv2_kernels import blocks


@pytest.fixture
def kept(request):
    """By file, the tests that make test runs; skips where the session is not of the whole suite."""
    every = request.config.stash[EVERY_TEST]
    files = {test.path.name for test in every}
    skipped = request.config.stash.get(SKIPPED_FILES, set())  # of what this machine does not have
    missing = {path.name for path in request.path.parent.rglob("test_*.py")} - files - skipped
    if missing:
        pytest.skip(f"only a part of the suite was collected, without {min(missing)} for example")
    by_file = {name: [] for name in files}
    for test in every:
        if test.get_closest_marker("thorough") is None:
            by_file[test.path.name].append(test)
    return by_file


def test_every_block_on_every_isa(kept):
    for kind in blocks.BLOCK_TYPES:
        isas = {
            test.callspec.params.get("isa") for test in kept[f"test_{kind}.py"] if hasattr(test, "callspec")
        }
        assert set(ISAS) <= isas, f"test_{kind}.py"


def test_something_of_every_file(kept):
    assert all(kept.values()), [name for name, tests in kept.items() if not tests]


def test_every_gpu_kernel_in_every_dtype(kept):
    kernels = pytest.importorskip("effv2_kernels.triton.kernels")
    tried = {
        (test.callspec.params["shape"].kind, test.callspec.params["dtype"])
        for test in kept["test_triton_kernels.py"]
        if test.originalname == "test_block"
    }
    assert {kind for kind, _ in tried} == set(kernels.LIMITS)
    assert len(tried) == 3 * len(kernels.LIMITS)
