// GELU(x) = x * Phi(x) = max(x, 0) - a * Phi(-a) with a = |x|.
//
// Phi(-a) spans eight decades on [0, 5.6] but its eighth root falls smoothly from 0.92 to 0.1, so a
// polynomial of degree 8 and three squarings give it (scripts/fit_gelu.py). The fit is off by at most 2.2e-8,
// less than the rounding of a GELU near 1, and exact at 0, so that small inputs keep their relative accuracy.
// No table, no division, no exponential. max(x, 0) is written (x + |x|) / 2 because that is NaN for -Inf, as
// x * Phi(x) is.
//
// Two multiplications are saved by working on scaled values: the input is s * x, with an s that makes the
// polynomial's leading coefficient 1, and the output is 2 s * GELU(x). The factors go into the weights
// before and behind, which whoever packs weights must remember. s = 5 / 32 is short, so that integers and
// their sums stay exact.
#pragma once

#include <cstdint>

#include "cpu/simd/simd.h"

namespace effv2::EFFV2_ISA {

inline constexpr double kBeforeGelu = 5.0 / 32;
inline constexpr double kAfterGelu = 0.5 / kBeforeGelu;
inline constexpr double kBetweenGelus = 0.5;  // kAfterGelu * kBeforeGelu

inline constexpr float kGeluEnd = static_cast<float>(5.6 * kBeforeGelu);
// (2 Phi(-a)) ** (1 / 8) on [0, 5.6] as a polynomial of s * a, highest power first, behind the leading 1;
// its sign is lost in the squares.
inline constexpr float kGeluRoot[] = {-3.77779675f, 4.67296505f, -0.467730433f, -2.73730326f,
                                      0.190306395f, 1.42623234f, 0.638303101f,  -1.0f};
inline constexpr int kGeluTerms = sizeof kGeluRoot / sizeof kGeluRoot[0];

// Count vectors at p, in place; Unscaled: the output is GELU(x) itself. Step by step for all of them
// together: a polynomial is one long chain of dependent operations, and several chains must be in flight
// to fill the multiply-add units.
template <int Count, bool Unscaled>
EFFV2_INLINE void gelu_vectors(float* p) {
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
    const Vec result = fnma(a[i], root[i], add(x, abs(x)));
    store(p + i * kLanes, Unscaled ? mul(result, set1(static_cast<float>(kAfterGelu))) : result);
  }
}

// GELU of `floats` values in place.
template <bool Unscaled = false>
inline void gelu(float* p, std::int64_t floats) {
  constexpr int kStep = kGeluVectors * kLanes;
  for (; floats >= kStep; floats -= kStep, p += kStep) gelu_vectors<kGeluVectors, Unscaled>(p);
  for (; floats >= kLanes; floats -= kLanes, p += kLanes) gelu_vectors<1, Unscaled>(p);
  if (floats > 0) {
    alignas(64) float rest[kLanes];
    store(rest, load_n(p, static_cast<int>(floats)));
    gelu_vectors<1, Unscaled>(rest);
    store_n(p, load(rest), static_cast<int>(floats));
  }
}

}  // namespace effv2::EFFV2_ISA
