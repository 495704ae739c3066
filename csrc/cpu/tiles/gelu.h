// GELU(x) = x * Phi(x) = max(x, 0) - a * Phi(-a) with a = |x|.
//
// Phi(-a) comes from a table of polynomials (gelu_table.h): the segment's number appears in the low
// mantissa bits when 1.5 * 2^23 is added, and one permute per coefficient fetches its polynomial.
// max(x, 0) is written (x + |x|) / 2 because that is NaN for -Inf, as x * Phi(x) is.
#pragma once

#include "cpu/simd/simd.h"
#include "cpu/tiles/gelu_table.h"

namespace effv2::EFFV2_ISA {

template <int Segments>
struct GeluTable;
template <>
struct GeluTable<4> {
  static constexpr const auto& rows = kGelu4;
};
template <>
struct GeluTable<16> {
  static constexpr const auto& rows = kGelu16;
};

EFFV2_INLINE Vec gelu(Vec x) {
  constexpr float kShift = 12582912.0f;  // 1.5 * 2^23
  constexpr float kScale = kGeluSegments / kGeluEnd;
  // Just below the end: there x * kScale - 0.5 must not round up to one segment too many.
  constexpr float kLimit = kGeluEnd * (1.0f - 1e-6f);
  const auto& rows = GeluTable<kGeluSegments>::rows;

  const Vec magnitude = abs(x);
  const Vec a = min(magnitude, set1(kLimit));
  // The middle of segment i lies at t = i, so that rounding t finds i, and u runs from -0.5 to 0.5.
  const Vec t = fma(a, set1(kScale), set1(-0.5f));
  const Vec shifted = add(t, set1(kShift));
  const Vec u = sub(t, sub(shifted, set1(kShift)));
  Vec p = lookup(rows[kGeluDegree], shifted);
#pragma GCC unroll 8
  for (int k = kGeluDegree - 1; k >= 0; --k) p = fma(p, u, lookup(rows[k], shifted));
  return fma(a, p, mul(set1(0.5f), add(x, magnitude)));
}

}  // namespace effv2::EFFV2_ISA
