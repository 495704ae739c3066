"""The bits of every block and network are those that digests.json has, on every ISA and in fp16."""

import digests
import pytest
import torch

on_every_target = pytest.mark.parametrize("target", digests.DIGESTED, ids=str)

LARGE = ("efficientformerv2_s2", "efficientformerv2_l")


def check(name, target, outputs):
    for y in outputs:
        assert bool(y.isfinite().all()), "a NaN has no digest"
        assert 1e-2 < float(y.std()) < 1e2, "so large or small that rounding may hide what is computed"
    known = digests.recorded(target)
    assert name in known, f"{name} has no digest on {target}: {digests.HOW_TO_ADD}"
    assert digests.digest(outputs) == known[name]


@on_every_target
@pytest.mark.parametrize("name", digests.block_cases())
def test_block(name, target):
    check(name, target, digests.run_block(name, target))


@on_every_target
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.thorough) if n in LARGE else n for n in digests.NETWORKS],
)
def test_network(name, target):
    check(name, target, digests.run_network(name, target))


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


@on_every_target
def test_one_bit_is_noticed(target):
    (y,) = digests.run_block("ffn", target)
    y.view({4: torch.int32, 2: torch.int16}[y.itemsize])[0, 0, 0, 0] ^= 1
    assert digests.digest([y]) != digests.recorded(target)["ffn"]


@on_every_target
def test_any_number_of_threads(target, many_processors):
    name = "efficientformerv2_s0 backbone at 160 x 200"
    for threads in (1, 3, 8):
        check(name, target, digests.run_network(name, target, threads))


def test_no_case_without_a_digest():
    cases = {*digests.block_cases(), *digests.NETWORKS}
    for target in ("scalar", "avx2", "avx512", "neon", "neon-fp16"):
        known = set(digests.recorded(target))
        assert cases <= known, f"{target} lacks {sorted(cases - known)}: {digests.HOW_TO_ADD}"
        assert known <= cases, f"{target} has digests of no case: {sorted(known - cases)}"
