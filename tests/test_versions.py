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
