"""Fit the polynomials of the CPU kernels and print their coefficients.

GELU(x) = max(x, 0) - a * Phi(-a) with a = |x|.

* the root of floats in csrc/cpu/tiles/gelu_root.h: Phi(-a) falls over eight decades, its eighth root only
  from 0.92 to 0.1, which a polynomial of degree 8 follows; three squarings give Phi(-a) back. The polynomial
  approximates the root of 2 * Phi(-a) and has the variable s * a; s = 5/32 is near where the best
  polynomial's leading coefficient is -1, so it is fixed to that; the last is fixed to 1, so that small
  inputs have a small relative error as well; the others minimise the largest error of a * Phi(-a) on
  [0, 5.6], beyond which that product is below 6.1e-8. They are printed, highest power first, with the
  opposite sign, which the squares undo.
* the root of halves there: the fourth root, of degree 4; s is what makes the leading coefficient 1.
* ``kGeluTable`` of csrc/cpu/tiles/gelu_table.h: -2 s a Phi(-a) for s = 5 as one polynomial of degree 4 for
  each integer n, in r = s a - n on [-1/2, 1/2]. The first is exactly -r + ... for the sake of small inputs;
  from s a = 29.5 on the product is below 1.1e-8 and the polynomial 0. Printed lowest power first.
* the coefficients of csrc/cpu/tiles/softmax.h: 2 ** f on [-1/2, 1/2], smallest relative error, highest
  power first.

Needs numpy and scipy.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.special import erfc

Array = np.ndarray
ROOT_END = 5.6
HALF_END = 4.0
ROOT = 8
ROOT_DEGREE = 8
ROOT_SCALE = 5 / 32
TABLE_SCALE = 5.0
TABLE_ENTRIES = 32
TABLE_FILLED = 30
TABLE_DEGREE = 4


def upper_tail(a: Array) -> Array:
    return 0.5 * erfc(a / np.sqrt(2))


def minimax(
    target: Callable[[Array], Array], weight: Callable[[Array], Array], low: float, high: float, degree: int
) -> Array:
    """Coefficients, lowest power first, that minimise the largest weighted error.

    Lawson's iteration: least squares whose weights grow where the error is large.
    """
    points = 4000
    u = np.cos(np.pi * (np.arange(points) + 0.5) / points)
    x = (low + high) / 2 + (high - low) / 2 * u
    y, w = target(x), weight(x)
    lawson = np.full(points, 1 / points)
    best, best_error = None, np.inf
    for _ in range(600):
        fit = np.polynomial.chebyshev.chebfit(u, y, degree, w=w * np.sqrt(lawson))
        error = w * np.abs(np.polynomial.chebyshev.chebval(u, fit) - y)
        if error.max() < best_error:
            best, best_error = fit, error.max()
        lawson *= error + 1e-14
        lawson /= lawson.sum()
    in_u = np.polynomial.Polynomial(np.polynomial.chebyshev.cheb2poly(best))
    to_u = np.polynomial.Polynomial([-(low + high) / (high - low), 2 / (high - low)])
    return in_u(to_u).coef


def numbers(coefficients: Array) -> str:
    return ", ".join(f"{np.float32(c):#.9g}f" for c in coefficients)


def gelu_root() -> Array:
    # An error e of the root moves a * Phi(-a) by a * ROOT / 2 * root ** (ROOT - 1) * e.
    between = minimax(
        lambda t: ((2 * upper_tail(t / ROOT_SCALE)) ** (1 / ROOT) + t**ROOT_DEGREE - 1) / t,
        lambda t: (
            t * (t / ROOT_SCALE * ROOT / 2 * (2 * upper_tail(t / ROOT_SCALE)) ** ((ROOT - 1) / ROOT) + 1e-9)
        ),
        0.0,
        ROOT_END * ROOT_SCALE,
        ROOT_DEGREE - 2,
    )
    return -np.concatenate([[1.0], between])


def gelu_half_root() -> tuple[float, Array]:
    """s, and the coefficients, lowest power first."""
    power = 4

    def weight(a: Array) -> Array:
        return a * (a * power / 2 * (2 * upper_tail(a)) ** ((power - 1) / power) + 1e-4)

    between = minimax(lambda a: ((2 * upper_tail(a)) ** (1 / power) - 1) / a, weight, 1e-6, HALF_END, 3)
    of_a = np.concatenate([[1.0], between])
    scale = abs(of_a[-1]) ** (1 / power)
    return scale, np.sign(of_a[-1]) * of_a / scale ** np.arange(power + 1)


def gelu_table() -> Array:
    """(power, entry)"""

    def product(t: Array) -> Array:
        return -2 * t * upper_tail(t / TABLE_SCALE)

    table = np.zeros((TABLE_DEGREE + 1, TABLE_ENTRIES))
    table[1, 0] = -1.0
    table[2:, 0] = minimax(lambda r: (product(r) + r) / r**2, lambda r: r**2, 0.0, 0.5, TABLE_DEGREE - 2)
    for n in range(1, TABLE_FILLED):
        table[:, n] = minimax(lambda r, n=n: product(n + r), np.ones_like, -0.5, 0.5, TABLE_DEGREE)
    return table


def power_of_two() -> Array:
    return minimax(np.exp2, lambda f: np.exp2(-f), -0.5, 0.5, degree=5)


if __name__ == "__main__":
    print("gelu_root.h, floats, behind the leading 1:", numbers(gelu_root()[::-1]))
    scale, root = gelu_half_root()
    print(f"gelu_root.h, halves, s = {scale:.9g}, behind the leading 1:", numbers(root[::-1][1:]))
    print("gelu_table.h kGeluTable:")
    for row in gelu_table():
        print(f"    {{{numbers(row)}}},")
    print("softmax.h 2 ** f:", numbers(power_of_two()[::-1]))
