"""Fit the polynomial tables of csrc/cpu/tiles/gelu_table.h and print that file.

GELU(x) = max(x, 0) - a * Phi(-a) with a = |x|; the second term is below 6.1e-8 from a = 5.6 on. [0, 5.6]
is cut into equal segments; on each, Phi(-a) is a polynomial in u, the distance from the segment's
middle in units of its length, chosen to minimise the largest error of a * Phi(-a). The factor a
keeps the error relative where x is small. Needs numpy and scipy.
"""

from __future__ import annotations

import numpy as np
from scipy.special import erfc

END = 5.6
SHAPES = ((4, 7), (16, 4))  # (segments, degree): one table per entry


def upper_tail(a: np.ndarray) -> np.ndarray:
    return 0.5 * erfc(a / np.sqrt(2))


def minimax(low: float, high: float, degree: int) -> tuple[np.ndarray, float]:
    """Lawson's iteration: least squares whose weights grow where the error is large."""
    points = 2000
    u = np.cos(np.pi * (np.arange(points) + 0.5) / points) / 2
    a = (low + high) / 2 + (high - low) * u
    y = upper_tail(a)
    weights = np.full(points, 1 / points)
    for _ in range(200):
        coefficients = np.polynomial.chebyshev.chebfit(2 * u, y, degree, w=a * np.sqrt(weights))
        error = a * np.abs(np.polynomial.chebyshev.chebval(2 * u, coefficients) - y)
        weights *= error
        weights /= weights.sum()
    powers = np.polynomial.chebyshev.cheb2poly(coefficients) * 2.0 ** np.arange(degree + 1)
    return powers, float(error.max())


def table(segments: int, degree: int) -> str:
    fits = [minimax(END * i / segments, END * (i + 1) / segments, degree) for i in range(segments)]
    worst = max(error for _, error in fits)
    copies = max(1, 8 // segments)  # a vector of 8 holds a table of 4 twice
    lines = [
        f"// {segments} segments of degree {degree}: error {worst:.1e} of GELU. Row k holds -coefficient of u^k per segment.",
        f"alignas(64) inline constexpr float kGelu{segments}[{degree + 1}][{segments * copies}] = {{",
    ]
    for k in range(degree + 1):
        values = ", ".join(f"{np.float32(-c[k]):.9e}f" for c, _ in fits * copies)
        lines.append(f"    {{{values}}},")
    lines.append("};")
    return "\n".join(lines)


print("// Written by scripts/fit_gelu.py. Do not edit.\n#pragma once\n\nnamespace effv2 {\n")
print(f"inline constexpr float kGeluEnd = {END}f;\n")
print("// clang-format off")
print("\n\n".join(table(*shape) for shape in SHAPES))
print("// clang-format on")
print("\n}  // namespace effv2")
