"""What makes Triton's interpreter quick in these tests changes no bit of a result."""

import pytest
import torch
from checks import seeded

pytest.importorskip("triton")

import quick_interpreter
import triton
import triton.language as tl
from test_triton_kernels import map_of, run_launches
from triton.runtime import interpreter

from effv2_kernels import shapes
from effv2_kernels.triton.kernels import pack

SHAPES = [shapes.ffn(8, 16, 2, 3), shapes.attention(8, 2, 2, stride=2, heads=2, key_dim=8, value_dim=8)]


@pytest.mark.parametrize(
    ("shape", "dtype"), [(SHAPES[0], torch.bfloat16), (SHAPES[1], torch.float32)], ids=str
)
def test_the_same_bits(shape, dtype):
    packed = pack(shapes.random_block(shape, seeded(91)), dtype, "cpu")
    x = shapes.random_input(shape, seeded(92)).to(dtype)
    image = map_of(x)
    found = run_launches(packed.plan(image, "ieee"), x, image)
    assert isinstance(interpreter._patch_lang, quick_interpreter._LanguageOnce)
    with quick_interpreter.plain():
        assert not isinstance(interpreter._patch_lang, quick_interpreter._LanguageOnce)
        assert torch.equal(run_launches(packed.plan(image, "ieee"), x, image), found)


@triton.jit
def twice(x, y):
    tl.store(y, 2 * tl.load(x))


def test_the_language_is_itself_again_after_a_launch():
    before, y = tl.load, torch.zeros(1)
    twice[(1,)](torch.ones(1), y)
    assert float(y) == 2
    assert tl.load is before
