"""Seeds, processes that share the cores, Triton's interpreter, and torchvision that does not fit to Torch."""

import contextlib
import fcntl
import importlib.util
import os
import secrets
import sys
import tempfile
import zlib
from pathlib import Path

import pytest
import torch

# Triton decides when it is imported whether kernels run in its interpreter; tests that compile them start a
# process of their own.
os.environ["TRITON_INTERPRET"] = "1"


def _load_module_for_tests(name, folder):
    """Have effv2_kernels use another compiled module than its own."""
    (path,) = Path(folder).glob(f"{name}.*")
    spec = importlib.util.spec_from_file_location(f"effv2_kernels.{name}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[f"effv2_kernels.{name}"] = module
    spec.loader.exec_module(module)


# That of make test-emulated has one ISA more; that of make test-cuda-emulated runs kernels by an emulator of
# thread blocks.
if os.environ.get("EFFV2_TEST_NATIVE"):
    _load_module_for_tests("_native", os.environ["EFFV2_TEST_NATIVE"])
if os.environ.get("EFFV2_TEST_CUDA"):
    _load_module_for_tests("_cuda", os.environ["EFFV2_TEST_CUDA"])

# pytest-xdist's workers inherit the environment, so all of them have the same seed.
SEED = int(os.environ.setdefault("EFFV2_TEST_SEED", str(secrets.randbelow(2**31))))

# How many processes run tests at the same time; see CONTRIBUTING.md.
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
THREADS = torch.get_num_threads()
if WORKERS > 1:
    torch.set_num_threads(max(1, THREADS // WORKERS))


# What processes that tests start do by PYTHONPATH, see there.
sys.path.insert(0, str(Path(__file__).parent / "site"))
importlib.import_module("torchvision_ops").install()


def pytest_report_header():
    return f"seed of random inputs: {SEED} (EFFV2_TEST_SEED={SEED} repeats it)"


# For test_newcomer_suite: every test before any is deselected, and the files that skip themselves as a whole.
EVERY_TEST = pytest.StashKey()
SKIPPED_FILES = pytest.StashKey()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    config.stash[EVERY_TEST] = list(items)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    report = yield
    if report.skipped:
        collector.config.stash.setdefault(SKIPPED_FILES, set()).add(collector.path.name)
    return report


def pytest_collection_finish():
    if "triton" in sys.modules:  # imported by a test that runs kernels
        import quick_interpreter

        quick_interpreter.install()


class _Neighbours:
    """Lets a test that is marked ``alone`` run while no other process runs one.

    Tests hold the second file together, or one holds it alone. Who waits for either holds the first, so that
    nobody begins another test in the meantime.
    """

    def __init__(self):
        run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
        folder = Path(tempfile.gettempdir())
        self._files = [(folder / f"effv2-tests-{run}-{i}").open("w") for i in range(2)] if run else []

    @contextlib.contextmanager
    def waited_for(self, alone):
        if not self._files:
            yield
            return
        turn, running = self._files
        fcntl.flock(turn, fcntl.LOCK_EX)
        fcntl.flock(running, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(turn, fcntl.LOCK_UN)
        before = torch.get_num_threads()
        if alone:
            torch.set_num_threads(THREADS)
        try:
            yield
        finally:
            torch.set_num_threads(before)
            fcntl.flock(running, fcntl.LOCK_UN)

    def close(self):
        for file in self._files:
            file.close()
            Path(file.name).unlink(missing_ok=True)


_neighbours = _Neighbours()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item):
    with _neighbours.waited_for(item.get_closest_marker("alone") is not None):
        return (yield)


def pytest_unconfigure():
    _neighbours.close()


@pytest.fixture
def generator(request):
    """Random numbers of this test alone: the same for one seed, in whatever order the tests run."""
    return torch.Generator().manual_seed(SEED ^ zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A folder of 64 pictures to train on and 20 to evaluate on; see training.py."""
    training = pytest.importorskip("training")
    return training.write_digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def group():
    """One process that trains on the CPU, on one thread."""
    from checks import one_torch_thread

    train = pytest.importorskip("effv2_kernels.train")
    with one_torch_thread(), train.processes("cpu") as found:
        yield found


@pytest.fixture
def many_processors():
    """Teams as on a large machine; here their members wait for each other."""
    from effv2_kernels import cpu

    cpu.native().pretend_cpus(32)
    yield
    cpu.native().pretend_cpus(0)
