// GELU(x) = x * Phi(x) = max(x, 0) - a * Phi(-a) with a = |x|.
//
// Phi(-a) spans eight decades on [0, 5.6] but its eighth root falls smoothly from 0.92 to 0.1, so a
// polynomial of degree 8 and three squarings give it (scripts/fit_gelu.py): GELU is off by at most 4e-9 by
// the fit and 1.2e-7 with rounding, and by less where GELU itself is small. No table, no division, no
// exponential. max(x, 0) is written (x + |x|) / 2 because that is NaN for -Inf, as x * Phi(x) is.
#pragma once

#include <cstdint>

#include "cpu/simd/simd.h"

namespace effv2::EFFV2_ISA {

// Phi(-a) ** (1 / 8) on [0, kGeluEnd], highest power first.
inline constexpr float kGeluEnd = 5.6f;
inline constexpr float kGeluRoot[] = {-2.9588e-07f,    7.47952754e-06f, -6.02574983e-05f,
                                      3.42946405e-05f, 0.00150436303f,  -0.000671956281f,
                                      -0.0319280773f,  -0.0914574116f,  0.917003989f};
inline constexpr int kGeluTerms = sizeof kGeluRoot / sizeof kGeluRoot[0];

// Count vectors at p, in place. Step by step for all of them together: a polynomial is one long chain
// of dependent operations, and several chains must be in flight to fill the multiply-add units.
template <int Count>
EFFV2_INLINE void gelu_vectors(float* p) {
  Vec a[Count], root[Count];
#pragma GCC unroll 8
  for (int i = 0; i < Count; ++i) {
    a[i] = min(abs(load(p + i * kLanes)), set1(kGeluEnd));
    root[i] = fma(set1(kGeluRoot[0]), a[i], set1(kGeluRoot[1]));
  }
#pragma GCC unroll 8
  for (int k = 2; k < kGeluTerms; ++k) {
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
    const Vec positive = mul(set1(0.5f), add(x, abs(x)));
    store(p + i * kLanes, fnma(a[i], root[i], positive));
  }
}

// GELU of `floats` values in place.
inline void gelu(float* p, std::int64_t floats) {
  constexpr int kStep = kGeluVectors * kLanes;
  for (; floats >= kStep; floats -= kStep, p += kStep) gelu_vectors<kGeluVectors>(p);
  for (; floats >= kLanes; floats -= kLanes, p += kLanes) gelu_vectors<1>(p);
  if (floats > 0) {
    alignas(64) float rest[kLanes];
    store(rest, load_n(p, static_cast<int>(floats)));
    gelu_vectors<1>(rest);
    store_n(p, load(rest), static_cast<int>(floats));
  }
}

}  // namespace effv2::EFFV2_ISA
