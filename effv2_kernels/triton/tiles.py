"""What the kernels are made of: GELU, and sums of products whose left factor is made tile by tile.

Feature maps are NHWC and dense: the value of channel c at pixel p (images, rows and columns counted
together) stands at p * channels + c. A sum adds ``left(x) @ w`` to ``acc`` (BM, BN) float32: BM pixels of
the output by BN of its channels, in steps of BK channels of the input. Matrices are (in, out), row-major.
``PRECISION`` is tl.dot's ``input_precision``: "ieee" or "tf32" for float32, without effect on half precision.

Names, here and in every kernel:

    x_ptr, x_ptrs     a pointer, and a tile of them
    x_at              offsets from a pointer, in elements
    x_tile            values: what was loaded, or goes into a product; ``acc``: a sum under way
    x_ok              a mask: which of some indices exist
    n, k, c           channels, by index: of an output, of a sum, of both where each is by itself
    pixel, row, key   other indices, (BM,) and the like; ``first``: where a tile begins
    height, tokens    sizes that are known when a kernel runs
    K, HEADS, STRIDE  what a kernel is compiled for; BM, BN, BK ...: sizes of its tile

What travels together is a tuple:

    place    (pixel, image, row, column, ok), each (BM,): pixels of an output, and where in it they lie
    task     (head, query, ok): of an attention, one head and some queries (BQ,) of one image
    x        (x_ptr, height, width): a feature map, by the name of its tensor
    filters  (dw_ptr, bias_ptr): a depthwise convolution; (9, channels), see depthwise_tiles, and float32
    weight   (w_ptr, K, N, BK, BN): a matrix (K, N) in tiles (BK, BN), or one for each tap of a convolution

Tuples without field names, because Torch's compiler writes the source of a kernel and of its functions into a
file of its own, where no class of theirs would exist. Constants in one live as long as it is an argument:
Triton makes run-time values of them where a tuple is given a name.
"""

import os

import triton
import triton.language as tl

# The activations that a kernel knows by name.
ACTIVATIONS = ("none", "gelu", "relu", "relu6", "silu", "hardswish")

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
def activated(x, ACTIVATION: tl.constexpr, dtype: tl.constexpr):
    """f(x) rounded to ``dtype``, with f as ``ACTIVATIONS`` names it."""
    if ACTIVATION == "gelu":
        return gelu(x, dtype)
    if ACTIVATION == "relu":
        x = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif ACTIVATION == "relu6":
        x = tl.clamp(x, 0.0, 6.0, propagate_nan=tl.PropagateNan.ALL)
    elif ACTIVATION == "silu":
        x = x.to(tl.float32)
        x = x / (1 + tl.exp(-x))
    elif ACTIVATION == "hardswish":
        x = x.to(tl.float32)
        x = x * tl.clamp(x + 3, 0.0, 6.0, propagate_nan=tl.PropagateNan.ALL) * (1 / 6)
    return narrow(x, dtype)


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
def narrow(x, dtype: tl.constexpr):
    """float32 rounded to the nearest value of ``dtype``."""
    if _INTERPRETED and dtype == tl.bfloat16:  # the interpreter cuts off: round before, to even
        bits = x.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        x = bits.to(tl.float32, bitcast=True)
    return x.to(dtype)


@triton.jit
def pixel_tile(first, count, height, width, BM: tl.constexpr, WIDE: tl.constexpr):
    """The place of pixels first ... first + BM - 1 of ``count``, through all images of height x width.

    WIDE: addresses need 64 bits.
    """
    pixel = first + tl.arange(0, BM)
    if WIDE:
        pixel = pixel.to(tl.int64)
    in_rows = pixel // width
    image = in_rows // height
    return pixel, image, in_rows - image * height, pixel - in_rows * width, pixel < count


@triton.jit
def output_tile(
    pixels, height, width, CHANNELS: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr, WIDE: tl.constexpr
):
    """What a program makes of an output: BC of its channels at BM pixels, channels next to each other.

    Returns (channels (BC,), place).
    """
    columns: tl.constexpr = (CHANNELS + BC - 1) // BC
    program = tl.program_id(0)
    c = program % columns * BC + tl.arange(0, BC)
    return c, pixel_tile(program // columns * BM, pixels, height, width, BM, WIDE)


@triton.jit
def query_tile(count, HEADS: tl.constexpr, BQ: tl.constexpr, WIDE: tl.constexpr):
    """What a program of an attention makes: BQ of ``count`` queries of one head, heads next to each other.

    Returns (image, task). WIDE: addresses need 64 bits.
    """
    tiles = tl.cdiv(count, BQ)
    program = tl.program_id(0)
    image = program // (HEADS * tiles)
    query = program // HEADS % tiles * BQ + tl.arange(0, BQ)
    if WIDE:
        image = image.to(tl.int64)
        query = query.to(tl.int64)
    return image, (program % HEADS, query, query < count)


@triton.jit
def place_of(task, width):
    """Where the queries of a task lie in the map of their image alone."""
    _, query, ok = task
    return query, query * 0, query // width, query % width, ok


@triton.jit
def load_row(ptr, n, N: tl.constexpr):
    """(1, BN): values n of N, zero outside."""
    return tl.load(ptr + n, mask=n < N, other=0.0)[None, :]


@triton.jit
def ptrs_of(y_ptr, place, n, N: tl.constexpr):
    """(BM, BN): where the channels n of N at a place stand in memory."""
    return y_ptr + place[0][:, None] * N + n[None, :]


@triton.jit
def ok_of(place, n, N: tl.constexpr):
    """(BM, BN): which of the channels n of N at a place exist."""
    return place[4][:, None] & (n < N)[None, :]


@triton.jit
def weight_tile(weight, k, n):
    """Rows k (BK,) and columns n (BN,) of a matrix, zero outside."""
    K: tl.constexpr = weight[1]
    N: tl.constexpr = weight[2]
    BK: tl.constexpr = weight[3]
    BN: tl.constexpr = weight[4]
    w_ptrs = weight[0] + k[:, None] * N + n[None, :]
    if K % BK == 0:
        if N % BN == 0:
            return tl.load(w_ptrs)
        return tl.load(w_ptrs, mask=(n < N)[None, :], other=0.0)
    return tl.load(w_ptrs, mask=(k < K)[:, None] & (n < N)[None, :], other=0.0)


@triton.jit
def pointwise_sum(acc, x_ptr, weight, place, n, PRECISION: tl.constexpr):
    """acc + x @ weight: a 1x1 convolution. x: (pixels, K). n: (BN,), columns of the weight."""
    K: tl.constexpr = weight[1]
    BK: tl.constexpr = weight[3]
    pixel, _, _, _, ok = place
    row_ptrs = x_ptr + pixel[:, None] * K
    for first in range(0, K, BK):
        k = first + tl.arange(0, BK)
        if K % BK == 0:
            x_tile = tl.load(row_ptrs + k[None, :], mask=ok[:, None], other=0.0)
        else:
            x_tile = tl.load(row_ptrs + k[None, :], mask=ok[:, None] & (k < K)[None, :], other=0.0)
        acc = dot(x_tile, weight_tile(weight, k, n), acc, PRECISION)
    return acc


@triton.jit
def depthwise_tiles(
    x,
    filters,  # float16 where x is, else float32
    place,  # of the output: the first of ROWS below each other
    c,  # (BC,)
    CHANNELS: tl.constexpr,
    PITCH: tl.constexpr,  # values of x from one pixel to the next
    STRIDE: tl.constexpr,
    ROWS: tl.constexpr,
    MASKED: tl.constexpr,  # c may pass CHANNELS
):
    """The 3x3 depthwise convolution of x at ROWS pixels below each other: a tuple of ROWS (BM, BC).

    A value of x is loaded and converted once for all of them: 12 loads for two rows instead of 18. float16 is
    summed in float16, two values in one instruction and nothing to convert; everything else in float32.
    """
    x_ptr, height, width = x
    dw_ptr, bias_ptr = filters
    _, image, row, column, place_ok = place
    c_ok = c < CHANNELS
    start = tl.load(bias_ptr + c, mask=c_ok, other=0.0) if MASKED else tl.load(bias_ptr + c)
    start = start.to(dw_ptr.dtype.element_ty)[None, :]
    outs = ()
    for _ in tl.static_range(ROWS):
        outs = outs + (start,)
    for r in tl.static_range(STRIDE * (ROWS - 1) + 3):
        x_row = row * STRIDE + (r - 1)
        row_ok = place_ok & (x_row >= 0) & (x_row < height)
        for s in tl.static_range(3):
            x_column = column * STRIDE + (s - 1)
            x_ok = (row_ok & (x_column >= 0) & (x_column < width))[:, None]
            x_ptrs = x_ptr + ((image * height + x_row) * width + x_column)[:, None] * PITCH + c[None, :]
            x_tile = tl.load(x_ptrs, mask=x_ok & c_ok[None, :] if MASKED else x_ok, other=0.0)
            x_tile = x_tile.to(dw_ptr.dtype.element_ty)
            sums = ()
            for o in tl.static_range(ROWS):
                if (r >= o * STRIDE) and (r < o * STRIDE + 3):
                    tap_ptrs = dw_ptr + ((r - o * STRIDE) * 3 + s) * CHANNELS + c
                    tap = tl.load(tap_ptrs, mask=c_ok, other=0.0) if MASKED else tl.load(tap_ptrs)
                    sums = sums + (outs[o] + x_tile * tap[None, :],)
                else:
                    sums = sums + (outs[o],)
            outs = sums
    return outs


@triton.jit
def depthwise_sums(
    accs,  # COLS of (BM, BN) for each of ROWS
    x,
    filters,
    weight,
    place,
    n,  # (BN,), the first of COLS blocks of columns of the weight
    ACTIVATION: tl.constexpr,
    STRIDE: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """accs + f(depthwise(x)) @ weight at ROWS pixels below each other.

    The depthwise result stays in registers and serves COLS blocks of columns next to each other, since three
    of 64 need fewer registers than one of 256.
    """
    dtype: tl.constexpr = weight[0].dtype.element_ty
    K: tl.constexpr = weight[1]
    BK: tl.constexpr = weight[3]
    BN: tl.constexpr = weight[4]
    for first in range(0, K, BK):
        k = first + tl.arange(0, BK)
        lefts = depthwise_tiles(x, filters, place, k, K, K, STRIDE, ROWS, K % BK != 0)
        sums = ()
        for o in tl.static_range(ROWS):
            left = activated(lefts[o], ACTIVATION, dtype)
            for j in tl.static_range(COLS):
                w_tile = weight_tile(weight, k, n + j * BN)
                sums = sums + (dot(left, w_tile, accs[o * COLS + j], PRECISION),)
        accs = finished(sums)
    return accs


@triton.jit
def conv_sum(
    acc,
    x,
    weight,  # one for each tap
    place,  # of the output
    n,  # (BN,), columns of the weights
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """acc + conv(x), padding KERNEL // 2: all taps of K channels in one loop, so that it can be pipelined."""
    K: tl.constexpr = weight[1]
    N: tl.constexpr = weight[2]
    BK: tl.constexpr = weight[3]
    BN: tl.constexpr = weight[4]
    STEPS: tl.constexpr = (K + BK - 1) // BK
    x_ptr, height, width = x
    _, image, row, column, place_ok = place
    for step in range(KERNEL * KERNEL * STEPS):
        tap = step // STEPS
        k = (step % STEPS) * BK + tl.arange(0, BK)
        x_row = row * STRIDE + (tap // KERNEL - KERNEL // 2)
        x_column = column * STRIDE + (tap % KERNEL - KERNEL // 2)
        x_ok = place_ok & (x_row >= 0) & (x_row < height) & (x_column >= 0) & (x_column < width)
        x_at = (image * height + x_row) * width + x_column
        x_ptrs = x_ptr + x_at[:, None] * K + k[None, :]
        x_tile = tl.load(x_ptrs, mask=x_ok[:, None] & (k < K)[None, :], other=0.0)
        w_tile = weight_tile((weight[0] + tap * K * N, K, N, BK, BN), k, n)
        acc = dot(x_tile, w_tile, acc, PRECISION)
    return acc


# Triton finds a compiled kernel by a hash of its source and of all functions that it calls, and the hash of a
# function that two kernels call depends on which of them was hashed first. Hashed here, before any kernel, it
# is the same in every process.
_HASHES = [value.cache_key for value in list(globals().values()) if isinstance(value, triton.JITFunction)]
