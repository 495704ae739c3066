"""A small network, optimised and saved: fixtures of tests of files."""

import pytest
from checks import seeded
from models import SMALL

from effv2_kernels import optimize, save

SPEC = SMALL[0]


@pytest.fixture(scope="module")
def fast():
    return optimize(SPEC.build(seeded(70)))


@pytest.fixture
def path(fast, tmp_path):
    path = tmp_path / "network.effv2"
    save(fast, path)
    return path
