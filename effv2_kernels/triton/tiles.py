"""What the kernels are made of: GELU, and sums of products whose left factor is made tile by tile.

Feature maps are NHWC and dense: the value of channel c at pixel p (images, rows and columns counted
together) stands at p * channels + c. A sum adds ``left(x) @ w`` to ``acc`` (BM, BN) float32: BM pixels of
the output by BN of its channels, in steps of BK channels of the input. Matrices are (in, out), row-major.
``PRECISION`` is tl.dot's ``input_precision``: "ieee" or "tf32" for float32, without effect on half precision.
"""

import os

import triton
import triton.language as tl

# Under TRITON_INTERPRET=1 kernels run on the CPU, where there is no inline assembly.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_INTERPRETED = tl.constexpr(INTERPRETED)


@triton.jit
def tanh(x):
    """tanh of float32 by the GPU's own instruction, relative error 2^-11."""
    if _INTERPRETED:
        return 1 - 2 / (tl.exp(2 * tl.minimum(x, 20.0)) + 1)
    return tl.inline_asm_elementwise(
        "tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
    )


@triton.jit
def gelu(x, EXACT: tl.constexpr):
    """x Phi(x) of float32.

    EXACT: by erf, for results in float32. Otherwise Phi(x) = (1 + tanh(x p(x^2))) / 2 with the polynomial p
    fitted to the exact function: 2.5e-5 from it before the error of tanh, at a third of the instructions.
    The argument of p is limited to where p grows.
    """
    if EXACT:
        return 0.5 * x * (1 + tl.math.erf(x * 0.7071067811865476))
    square = tl.minimum(x * x, 50.0)
    half = 0.5 * x
    inner = (-0.0003516124753 * square + 0.03700623509812) * square + 0.79750723695372
    return half * tanh(x * inner) + half


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """a @ b + acc, accumulated in float32."""
    if _INTERPRETED and a.dtype == tl.bfloat16:  # the interpreter multiplies its bit patterns
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def narrow(x, dtype: tl.constexpr):
    """float32 rounded to the nearest value of ``dtype``."""
    if _INTERPRETED and dtype == tl.bfloat16:  # the interpreter cuts off: round before, to even
        bits = x.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        x = bits.to(tl.float32, bitcast=True)
    return x.to(dtype)


@triton.jit
def pixel_tile(first, count, height, width, BM: tl.constexpr, WIDE: tl.constexpr):
    """Pixels first ... first + BM - 1 of ``count``, counted through all images of height x width.

    Returns (pixels, image, row, column, valid), each (BM,). WIDE: addresses need 64 bits.
    """
    pixels = first + tl.arange(0, BM)
    if WIDE:
        pixels = pixels.to(tl.int64)
    in_rows = pixels // width
    image = in_rows // height
    return pixels, image, in_rows - image * height, pixels - in_rows * width, pixels < count


@triton.jit
def weight_tile(w, k, n, K: tl.constexpr, N: tl.constexpr, BK: tl.constexpr, BN: tl.constexpr):
    """Rows k (BK,) and columns n (BN,) of w (K, N), zero outside."""
    at = w + k[:, None] * N + n[None, :]
    if K % BK == 0:
        if N % BN == 0:
            return tl.load(at)
        return tl.load(at, mask=(n < N)[None, :], other=0.0)
    return tl.load(at, mask=(k < K)[:, None] & (n < N)[None, :], other=0.0)


@triton.jit
def pointwise_sum(
    acc,
    x,  # (pixels, K)
    w,  # (K, N)
    pixels,  # (BM,), of x
    valid,  # (BM,)
    n,  # (BN,)
    K: tl.constexpr,
    N: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """acc + x @ w: a 1x1 convolution."""
    rows = x + pixels[:, None] * K
    for k0 in range(0, K, BK):
        k = k0 + tl.arange(0, BK)
        if K % BK == 0:
            left = tl.load(rows + k[None, :], mask=valid[:, None], other=0.0)
        else:
            left = tl.load(rows + k[None, :], mask=valid[:, None] & (k < K)[None, :], other=0.0)
        acc = dot(left, weight_tile(w, k, n, K, N, BK, BN), acc, PRECISION)
    return acc


@triton.jit
def depthwise_tile(
    x,  # from one pixel to the next are ROW values
    dw,  # (9, CHANNELS) float32
    bias,  # (CHANNELS,) float32
    image,  # (BM,)
    row,  # (BM,), of the output
    column,
    valid,
    k,  # (BK,), channels
    height,  # of x
    width,
    CHANNELS: tl.constexpr,
    ROW: tl.constexpr,
    STRIDE: tl.constexpr,
):
    """(BM, BK) float32: the 3x3 depthwise convolution of x at some pixels and channels of its output."""
    inside = k < CHANNELS
    out = tl.load(bias + k, mask=inside, other=0.0)[None, :]
    for tap in tl.static_range(9):
        at_row = row * STRIDE + (tap // 3 - 1)
        at_column = column * STRIDE + (tap % 3 - 1)
        ok = valid & (at_row >= 0) & (at_row < height) & (at_column >= 0) & (at_column < width)
        pixels = (image * height + at_row) * width + at_column
        value = tl.load(x + pixels[:, None] * ROW + k[None, :], mask=ok[:, None] & inside[None, :], other=0.0)
        weight = tl.load(dw + tap * CHANNELS + k, mask=inside, other=0.0)
        out += value.to(tl.float32) * weight[None, :]
    return out


@triton.jit
def depthwise_sum(
    acc,
    x,
    dw,
    bias,
    w,
    image,
    row,
    column,
    valid,
    n,
    height,  # of x
    width,
    K: tl.constexpr,
    N: tl.constexpr,
    STRIDE: tl.constexpr,
    GELU: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """acc + f(depthwise(x)) @ w, f being GELU or nothing; the depthwise result stays in registers."""
    for k0 in range(0, K, BK):
        k = k0 + tl.arange(0, BK)
        left = depthwise_tile(x, dw, bias, image, row, column, valid, k, height, width, K, K, STRIDE)
        if GELU:
            left = gelu(left, w.dtype.element_ty == tl.float32)
        left = narrow(left, w.dtype.element_ty)
        acc = dot(left, weight_tile(w, k, n, K, N, BK, BN), acc, PRECISION)
    return acc


@triton.jit
def resized_sum(
    acc,
    x,  # (pixels, K)
    w,
    image,
    row,
    column,
    valid,
    n,
    height,  # of x
    width,
    K: tl.constexpr,
    N: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """acc + GELU(bilinear 2x of x) @ w (align_corners=False).

    A pixel of the larger map lies a quarter of a pixel from the nearer row of x and three quarters from the
    farther one, which is the nearer one again at the edge; columns alike.
    """
    near_row, near_column = row // 2, column // 2
    far_row = tl.minimum(tl.maximum(near_row + (row % 2) * 2 - 1, 0), height - 1)
    far_column = tl.minimum(tl.maximum(near_column + (column % 2) * 2 - 1, 0), width - 1)
    near = (image * height + near_row) * width
    far = (image * height + far_row) * width
    for k0 in range(0, K, BK):
        k = k0 + tl.arange(0, BK)
        ok = valid[:, None] & (k < K)[None, :]
        nn = tl.load(x + (near + near_column)[:, None] * K + k[None, :], mask=ok, other=0.0)
        nf = tl.load(x + (near + far_column)[:, None] * K + k[None, :], mask=ok, other=0.0)
        fn = tl.load(x + (far + near_column)[:, None] * K + k[None, :], mask=ok, other=0.0)
        ff = tl.load(x + (far + far_column)[:, None] * K + k[None, :], mask=ok, other=0.0)
        nearer = 0.75 * nn.to(tl.float32) + 0.25 * nf.to(tl.float32)
        farther = 0.75 * fn.to(tl.float32) + 0.25 * ff.to(tl.float32)
        left = gelu(0.75 * nearer + 0.25 * farther, w.dtype.element_ty == tl.float32)
        left = narrow(left, w.dtype.element_ty)
        acc = dot(left, weight_tile(w, k, n, K, N, BK, BN), acc, PRECISION)
    return acc


@triton.jit
def conv_sum(
    acc,
    x,  # (pixels, K)
    w,  # (9, K, N)
    image,
    row,  # of the output
    column,
    valid,
    n,
    height,  # of x
    width,
    K: tl.constexpr,
    N: tl.constexpr,
    STRIDE: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """acc + conv3x3(x), padding 1: nine taps of K channels in one loop, so that it can be pipelined."""
    STEPS: tl.constexpr = (K + BK - 1) // BK
    for step in range(9 * STEPS):
        tap = step // STEPS
        k = (step % STEPS) * BK + tl.arange(0, BK)
        at_row = row * STRIDE + (tap // 3 - 1)
        at_column = column * STRIDE + (tap % 3 - 1)
        ok = valid & (at_row >= 0) & (at_row < height) & (at_column >= 0) & (at_column < width)
        pixels = (image * height + at_row) * width + at_column
        left = tl.load(x + pixels[:, None] * K + k[None, :], mask=ok[:, None] & (k < K)[None, :], other=0.0)
        right = weight_tile(w + tap * K * N, k, n, K, N, BK, BN)
        acc = dot(left, right, acc, PRECISION)
    return acc


# Triton finds a compiled kernel by a hash of its source and of all functions that it calls, and the hash of a
# function that two kernels call depends on which of them was hashed first. Hashed here, before any kernel, it
# is the same in every process.
_HASHES = [value.cache_key for value in list(globals().values()) if isinstance(value, triton.JITFunction)]
