"""The page of situations is the one that the tests of tests/users/ give."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("situations", ROOT / "scripts" / "situations.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date(script):
    assert script.TABLE.read_text(encoding="utf-8") == script.page(), "run python scripts/situations.py"


def test_every_file_of_users_has_situations(script):
    files = sorted((ROOT / "tests" / "users").glob("test_*.py"))
    assert len(files) >= 10
    for path in files:
        about, rows = script.situations(path)
        assert about, path
        assert rows, path
        for what, answer in rows:
            assert answer.startswith(("works", "refused", "left out", "as ")), (path, what, answer)
