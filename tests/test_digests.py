"""The bits of every block and network are those that digests.json has, on every ISA."""

import digests
import pytest
import torch
from checks import ISAS

LARGE = ("efficientformerv2_s2", "efficientformerv2_l")


def check(name, isa, outputs):
    for y in outputs:
        assert bool(y.isfinite().all()), "a NaN has no digest"
        assert 1e-2 < float(y.std()) < 1e2, "so large or small that rounding may hide what is computed"
    known = digests.recorded(isa)
    assert name in known, f"{name} has no digest on {isa}: {digests.HOW_TO_ADD}"
    assert digests.digest(outputs) == known[name]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", digests.block_cases())
def test_block(name, isa):
    check(name, isa, digests.run_block(name, isa))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.thorough) if n in LARGE else n for n in digests.NETWORKS],
)
def test_network(name, isa):
    check(name, isa, digests.run_network(name, isa))


def test_integers():
    """Weights and inputs are those of the first day: another generator would need other digests."""
    some = digests.integers((2, 3), "some seed", 15)
    assert some.tolist() == [[-7179.0, -11805.0, 20469.0], [8621.0, -15883.0, 25607.0]]
    assert digests.integers((2, 3), "another seed", 15).tolist() != some.tolist()
    many = digests.integers((100_000,), "many")
    assert torch.equal(many * 2.0**15, (many * 2.0**15).round())
    assert -1 <= float(many.min()) < -0.99
    assert 0.99 < float(many.max()) < 1
    assert abs(float(many.mean())) < 0.01
    assert 0.57 < float(many.std()) < 0.585


@pytest.mark.parametrize("isa", ISAS)
def test_one_bit_is_noticed(isa):
    (y,) = digests.run_block("ffn", isa)
    y.view(torch.int32)[0, 0, 0, 0] ^= 1
    assert digests.digest([y]) != digests.recorded(isa)["ffn"]


def test_no_case_without_a_digest():
    cases = {*digests.block_cases(), *digests.NETWORKS}
    for isa in ("scalar", "avx2", "avx512", "neon"):
        known = set(digests.recorded(isa))
        assert cases <= known, f"{isa} lacks {sorted(cases - known)}: {digests.HOW_TO_ADD}"
        assert known <= cases, f"{isa} has digests of no case: {sorted(known - cases)}"
