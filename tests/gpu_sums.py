"""``tl.dot`` under the interpreter, adding up in the order and with the rounding of a GPU.

The interpreter's own matrix products are as exact as the CPU's BLAS. On a GPU, "ieee" is one chain of fused
multiply-adds over all of K. Tensor cores add a few exact products at once: all of them and the accumulator
are cut off at some bits below the largest, and so is their sum (Fasi, Higham, Mikaitis and Pranesh,
"Numerical behavior of NVIDIA tensor cores", 2021). Of the GPUs from compute capability 8.0 on, the first is
the least exact: four terms of tf32 or eight of half precision at once, and one bit more than float32 has.
"""

import numpy as np
from triton._C.libtriton.ir import INPUT_PRECISION
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

_EXTRA_BITS = 1


def _chain(a, b, acc):
    """One fused multiply-add after another; float64 holds a product of float32 exactly."""
    for k in range(a.shape[-1]):
        product = a[..., :, k, None].astype(np.float64) * b[..., None, k, :]
        acc = (acc + product).astype(np.float32)
    return acc


def _cut(x, quantum):
    return np.trunc(x / quantum) * quantum


def _tensor_cores(a, b, acc, width):
    for k in range(0, a.shape[-1], width):
        terms = a[..., :, k : k + width, None].astype(np.float64) * b[..., None, k : k + width, :]
        terms = np.concatenate([terms, acc[..., :, None, :].astype(np.float64)], axis=-2)
        exponent = np.frexp(np.abs(terms).max(axis=-2))[1]
        total = _cut(terms, np.exp2(exponent - 24.0 - _EXTRA_BITS)[..., :, None, :]).sum(axis=-2)
        bits = np.exp2(np.frexp(total)[1] - 24.0)
        acc = _cut(total, bits).astype(np.float32)
    return acc


def _nearest_tf32(x):
    """Rounded to 10 bits behind the point."""
    bits = x.view(np.uint32)
    return ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)


def _as_tf32(x):
    """What tensor cores read of a float32: the rest of its bits is ignored."""
    return (x.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)


def _dot(a, b, acc, precision):
    if a.dtype == np.float16:
        return _tensor_cores(a.astype(np.float32), b.astype(np.float32), acc, 8)
    if precision == INPUT_PRECISION.IEEE:
        return _chain(a, b, acc)
    if precision == INPUT_PRECISION.TF32x3:
        large_a, large_b = _nearest_tf32(a), _nearest_tf32(b)
        products = _tensor_cores(_as_tf32(a - large_a), large_b, np.zeros_like(acc), 4)
        products = _tensor_cores(large_a, _as_tf32(b - large_b), products, 4)
        return acc + _tensor_cores(large_a, large_b, products, 4)
    raise NotImplementedError(f"tl.dot with {precision}")


def install(monkeypatch):
    """Every ``tl.dot`` of a test adds up like a GPU."""

    def create_dot(self, a, b, d, input_precision, max_num_imprecise_acc):
        return TensorHandle(_dot(a.data, b.data, d.data, input_precision), d.dtype.scalar)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)
