"""bench/versions: two versions in alternating processes. Both are this one here."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def compare():
    sys.path.insert(0, str(ROOT / "bench" / "versions"))
    import compare

    yield compare
    sys.path.remove(str(ROOT / "bench" / "versions"))


@pytest.fixture(scope="module")
def kernels():
    sys.path.insert(0, str(ROOT / "bench" / "versions"))
    import kernels

    yield kernels
    sys.path.remove(str(ROOT / "bench" / "versions"))


@pytest.fixture
def workers(compare):
    found = {who: compare.Worker(ROOT) for who in ("old", "new", "again")}
    yield found
    for worker in found.values():
        worker.close()


def test_the_same_version(compare, workers):
    row = compare.compare(workers, "s0", batch=1, threads=1, seconds=0)
    assert row["same"]
    assert row["rounds"] == compare.MIN_ROUNDS
    assert row["milliseconds"] > 0.1
    assert 0.2 < row["ratio"] < 5
    assert 0.2 < row["control"] < 5
    report = compare.report([row, row], 1.5)
    assert report.count("yes") == 2
    assert "1.5000" in report


def test_start_up(compare):
    found = compare.start_ups(ROOT, ROOT, "s0", 1)
    assert set(found) == {
        "seconds of import",
        "seconds of building and optimize",
        "seconds of the first call",
        "most memory, MB",
    }
    assert all(value["old"] > 0 and value["new"] > 0 for value in found.values())


def test_a_worker_that_ends_is_noticed(compare):
    worker = compare.Worker(ROOT)
    with pytest.raises(SystemExit, match="a worker ended with 1 at"):
        worker.ask(ask="no_such_question")
    worker.close()


def test_an_unknown_revision(compare):
    with pytest.raises(SystemExit, match="git knows no revision 'no-such-revision'"):
        compare.build("no-such-revision")


def kernel_row(code="a", **changes):
    row = {"kernel": "product", "dtype": "float16", "capability": 90, "code": code, "stack": 0}
    return row | {"registers": 64, "shared": 1024, "instructions": 500} | changes


def test_kernels_that_take_more(kernels):
    old = {"first": kernel_row(), "second": kernel_row(), "third": kernel_row()}
    new = {"first": kernel_row(), "second": kernel_row("b", registers=65), "third": kernel_row("c", shared=8)}
    assert [place for place in old if kernels.takes_more(old[place], new[place])] == ["second"]
    (line,) = (line for line in kernels.report(old, new).splitlines() if "product" in line)
    # Launches; of them with the same code, with less and with more; then the sums of the old and the new.
    assert line.replace("-> ", "").split()[3:] == [
        *("3", "1", "1", "1"),
        *("192", "193", "0", "0", "3072", "2056", "1500", "1500"),
    ]
