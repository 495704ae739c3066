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
    """tanh of float32 or float16 by the GPU's own instruction, error 2^-11."""
    if _INTERPRETED:
        wide = x.to(tl.float32)
        y = (1 - 2 / (tl.exp(2 * tl.minimum(wide, 20.0)) + 1)).to(x.dtype)
    elif x.dtype == tl.float16:
        y = tl.inline_asm_elementwise(
            "tanh.approx.f16x2 $0, $1;", "=r,r", [x], dtype=tl.float16, is_pure=True, pack=2
        )
    else:
        y = tl.inline_asm_elementwise(
            "tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    return y


@triton.jit
def gelu(x, dtype: tl.constexpr):
    """x Phi(x) of float32 (or of ``dtype``), rounded to ``dtype``.

    float32: by erf. Otherwise Phi(x) = (1 + tanh(x p(x^2))) / 2 with the polynomial p fitted to the exact
    function: 2.5e-5 from it before the error of tanh, at a third of the instructions. The argument of p is
    limited to where p grows. In float16 all of it is done in float16, two values at a time: half the
    instructions, and with a depthwise convolution in float16 before it 5.5e-4 instead of 3.8e-4 off after a
    whole FFN.
    """
    if dtype == tl.float32:
        return 0.5 * x * (1 + tl.math.erf(x * 0.7071067811865476))
    if dtype == tl.float16:
        x = x.to(dtype)
    # A bare number would make float32 of float16.
    square = tl.minimum(x * x, tl.full((), 50.0, x.dtype))
    inner = square * tl.full((), -0.0003516124753, x.dtype) + tl.full((), 0.03700623509812, x.dtype)
    inner = inner * square + tl.full((), 0.79750723695372, x.dtype)
    half = x * tl.full((), 0.5, x.dtype)
    return narrow(half * tanh(x * inner) + half, dtype)


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """a @ b + acc, accumulated in float32.

    An exact float32 product is one chain of fused multiply-adds for each value, and its error grows with its
    length. So each step of a sum has a chain of its own: at 1536 channels an FFN is 2e-7 off instead of 9e-7.
    What they come to is added by ``fma``, because Triton makes one long chain again of a plain addition.
    """
    if _INTERPRETED and a.dtype == tl.bfloat16:  # the interpreter multiplies its bit patterns
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    if a.dtype == tl.float32 and PRECISION == "ieee":
        return tl.fma(tl.dot(a, b, input_precision="ieee"), tl.full(acc.shape, 1.0, tl.float32), acc)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def finished(sums):
    """The same sums, no product of which is under way any more.

    Hopper's tensor cores read a left factor in registers while the program goes on, and Triton waits for a
    product only when the next one is under way; by then the registers would hold the next left factor.
    """
    if _INTERPRETED:
        return sums
    waited = tl.inline_asm_elementwise("", "=f,0", [sums[-1]], dtype=tl.float32, is_pure=True, pack=1)
    return sums[:-1] + (waited,)


@triton.jit
def settled(x):
    """x of half precision as it is, in the layout that it has: its way to the tensor cores begins here.

    Otherwise Triton moves that way up to the loads, and takes every term of a sum there instead of the sum.
    """
    if _INTERPRETED or x.dtype == tl.float32:
        return x
    return tl.inline_asm_elementwise("", "=r,0", [x], dtype=x.dtype, is_pure=True, pack=2)


@triton.jit
def long_dot(a, b, acc, PRECISION: tl.constexpr):
    """As ``dot``, over many values: a sum over keys.

    Tensor cores cut off where others round, so that in a long sum of float32 ("tf32x3") all results become
    too small, and attention block after attention block adds to that: over S0 6e-7 instead of 1.9e-7. Sums of
    16 values each, added by rounding, keep it small; few values take ordinary units without spilling.
    """
    if PRECISION == "tf32x3" and a.dtype == tl.float32 and a.shape[1] >= 64:
        parts: tl.constexpr = a.shape[1] // 16
        left = tl.permute(tl.reshape(a, (a.shape[0], parts, 16)), (1, 0, 2))
        right = tl.reshape(b, (parts, 16, b.shape[1]))
        acc += tl.sum(tl.dot(left, right, input_precision=PRECISION), 0)
    else:
        acc = dot(a, b, acc, "ieee" if PRECISION == "tf32x3" else PRECISION)
    return acc


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
def query_tile(queries, HEADS: tl.constexpr, BQ: tl.constexpr, WIDE: tl.constexpr):
    """What a program of an attention makes: BQ queries of one head of one image, heads next to each other.

    Returns (head, image, query (BQ,), valid (BQ,)). WIDE: addresses need 64 bits.
    """
    tiles = tl.cdiv(queries, BQ)
    program = tl.program_id(0)
    image = program // (HEADS * tiles)
    query = program // HEADS % tiles * BQ + tl.arange(0, BQ)
    if WIDE:
        image = image.to(tl.int64)
        query = query.to(tl.int64)
    return program % HEADS, image, query, query < queries


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
def depthwise_tiles(
    x,  # from one pixel to the next are ROW values
    dw,  # (9, CHANNELS), float16 where x is, else float32
    bias,  # (CHANNELS,) float32
    image,  # (BM,)
    row,  # (BM,), of the output: the first of ROWS
    column,
    valid,
    k,  # (BK,), channels
    height,  # of x
    width,
    CHANNELS: tl.constexpr,
    ROW: tl.constexpr,
    STRIDE: tl.constexpr,
    ROWS: tl.constexpr,
    MASKED: tl.constexpr,  # k may pass CHANNELS
):
    """The 3x3 depthwise convolution of x at ROWS pixels below each other: a tuple of ROWS (BM, BK).

    A value of x is loaded and converted once for all of them: 12 loads for two rows instead of 18. float16 is
    summed in float16, two values in one instruction and nothing to convert; everything else in float32.
    """
    inside = k < CHANNELS
    start = tl.load(bias + k, mask=inside, other=0.0) if MASKED else tl.load(bias + k)
    start = start.to(dw.dtype.element_ty)[None, :]
    outs = ()
    for _ in tl.static_range(ROWS):
        outs = outs + (start,)
    for r in tl.static_range(STRIDE * (ROWS - 1) + 3):
        at_row = row * STRIDE + (r - 1)
        row_ok = valid & (at_row >= 0) & (at_row < height)
        for c in tl.static_range(3):
            at_column = column * STRIDE + (c - 1)
            ok = (row_ok & (at_column >= 0) & (at_column < width))[:, None]
            at = x + ((image * height + at_row) * width + at_column)[:, None] * ROW + k[None, :]
            value = tl.load(at, mask=ok & inside[None, :] if MASKED else ok, other=0.0)
            value = value.to(dw.dtype.element_ty)
            sums = ()
            for o in tl.static_range(ROWS):
                if (r >= o * STRIDE) and (r < o * STRIDE + 3):
                    tap = dw + ((r - o * STRIDE) * 3 + c) * CHANNELS + k
                    weight = tl.load(tap, mask=inside, other=0.0) if MASKED else tl.load(tap)
                    sums = sums + (outs[o] + value * weight[None, :],)
                else:
                    sums = sums + (outs[o],)
            outs = sums
    return outs


@triton.jit
def depthwise_sums(
    accs,  # COLS of (BM, BN) for each of ROWS
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
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """accs + GELU(depthwise(x)) @ w at ROWS pixels below each other.

    The depthwise result stays in registers and serves COLS blocks of columns next to each other, since three
    of 64 need fewer registers than one of 256.
    """
    dtype: tl.constexpr = w.dtype.element_ty
    for k0 in range(0, K, BK):
        k = k0 + tl.arange(0, BK)
        lefts = depthwise_tiles(
            x, dw, bias, image, row, column, valid, k, height, width, K, K, 1, ROWS, K % BK != 0
        )
        sums = ()
        for o in tl.static_range(ROWS):
            left = gelu(lefts[o], dtype)
            for j in tl.static_range(COLS):
                right = weight_tile(w, k, n + j * BN, K, N, BK, BN)
                sums = sums + (dot(left, right, accs[o * COLS + j], PRECISION),)
        accs = finished(sums)
    return accs


@triton.jit
def resized_tile(
    x,  # (pixels, CHANNELS)
    image,
    row,  # of the larger map
    column,
    valid,
    k,  # (BK,), channels
    height,  # of x
    width,
    CHANNELS: tl.constexpr,
    MASKED: tl.constexpr,  # k may pass CHANNELS
    dtype: tl.constexpr,
):
    """(BM, BK): GELU(bilinear 2x of x) at some pixels and channels (align_corners=False).

    A pixel of the larger map lies a quarter of a pixel from the nearer row of x and three quarters from the
    farther one, which is the nearer one again at the edge; columns alike. float16 is interpolated in float16:
    see depthwise_tiles.
    """
    near_row, near_column = row // 2, column // 2
    far_row = tl.minimum(tl.maximum(near_row + (row % 2) * 2 - 1, 0), height - 1)
    far_column = tl.minimum(tl.maximum(near_column + (column % 2) * 2 - 1, 0), width - 1)
    near = (image * height + near_row) * width
    far = (image * height + far_row) * width
    between: tl.constexpr = tl.float16 if dtype == tl.float16 else tl.float32
    quarter, three_quarters = tl.full((), 0.25, between), tl.full((), 0.75, between)
    ok = valid[:, None] & (k < CHANNELS)[None, :] if MASKED else valid[:, None]
    c = k[None, :]
    nn = tl.load(x + (near + near_column)[:, None] * CHANNELS + c, mask=ok, other=0.0).to(between)
    nf = tl.load(x + (near + far_column)[:, None] * CHANNELS + c, mask=ok, other=0.0).to(between)
    fn = tl.load(x + (far + near_column)[:, None] * CHANNELS + c, mask=ok, other=0.0).to(between)
    ff = tl.load(x + (far + far_column)[:, None] * CHANNELS + c, mask=ok, other=0.0).to(between)
    nearer = nn * three_quarters + nf * quarter
    farther = fn * three_quarters + ff * quarter
    return gelu(nearer * three_quarters + farther * quarter, dtype)


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
