// GELU by a root: for an ISA without table lookups in registers.
//
// Phi(-a) spans eight decades on [0, 5.6] but its eighth root falls smoothly from 0.92 to 0.1, so a
// polynomial of degree 8 and three squarings give it (scripts/fit_gelu.py). The fit is off by at most 2.2e-8,
// less than the rounding of a GELU near 1, and exact at 0, so that small inputs keep their relative accuracy.
// No table, no division, no exponential. s = 5 / 32 makes the polynomial's leading coefficient 1.
#pragma once

#include "cpu/target.h"

namespace effv2::EFFV2_TARGET {

inline constexpr double kBeforeGelu = 5.0 / 32;

inline constexpr float kGeluEnd = static_cast<float>(5.6 * kBeforeGelu);
// (2 Phi(-a)) ** (1 / 8) on [0, 5.6] as a polynomial of s * a, highest power first, behind the leading 1;
// its sign is lost in the squares.
inline constexpr float kGeluRoot[] = {-3.77779675f, 4.67296505f, -0.467730433f, -2.73730326f,
                                      0.190306395f, 1.42623234f, 0.638303101f,  -1.0f};
inline constexpr int kGeluTerms = sizeof kGeluRoot / sizeof kGeluRoot[0];

// values[i] = 2 s GELU of the vector at p + i * kLanes, which holds s x. Step by step for all of them
// together: a polynomial is one long chain of dependent operations, and several chains must be in flight
// to fill the multiply-add units.
template <int Count>
EFFV2_INLINE void gelu_values(const float* p, Vec (&values)[Count]) {
  Vec a[Count], root[Count];
#pragma GCC unroll 8
  for (int i = 0; i < Count; ++i) {
    a[i] = min(abs(load(p + i * kLanes)), set1(kGeluEnd));
    root[i] = add(a[i], set1(kGeluRoot[0]));
  }
#pragma GCC unroll 8
  for (int k = 1; k < kGeluTerms; ++k) {
#pragma GCC unroll 8
    for (int i = 0; i < Count; ++i) root[i] = fma(root[i], a[i], set1(kGeluRoot[k]));
  }
#pragma GCC unroll 3
  for (int square = 0; square < 3; ++square) {
#pragma GCC unroll 8
    for (int i = 0; i < Count; ++i) root[i] = mul(root[i], root[i]);
  }
#pragma GCC unroll 8
  for (int i = 0; i < Count; ++i) {
    const Vec x = load(p + i * kLanes);
    values[i] = fnma(a[i], root[i], add(x, abs(x)));
  }
}

}  // namespace effv2::EFFV2_TARGET
