"""A small network with names of classes and one image, as files: what most tests of ``effv2-run`` give it."""

import pytest
from checks import seeded
from models import SMALL
from runner import write

from effv2_kernels import cpu, optimize, save

SPEC = SMALL[0]
SIZE = ("--img-size", SPEC.img_size)
NAMES = (*(f"name {i}" for i in range(9)), "Grünfink, 金魚")
# The program has no emulated ones.
ISAS = [isa for isa in cpu.native().available_isas() if not isa.endswith("_emulated")]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "network.effv2"
    save(optimize(SPEC.build(seeded(200))), path, labels=NAMES)
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write(tmp_path_factory.mktemp("images") / "x.npy", SPEC.images(seeded(201)))
