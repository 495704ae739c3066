// Softmax of a row in place, and the exponential it needs.
#pragma once

#include "cpu/simd/simd.h"

namespace effv2::EFFV2_ISA {

// e^x for x <= 0 (or NaN): x = n ln 2 + r, e^r by its series to r^6 / 720, times 2^n.
// Below -87 the result is 0. The relative error stays below 2e-7.
EFFV2_INLINE Vec exp_nonpositive(Vec x) {
  constexpr float kShift = 12582912.0f;  // 1.5 * 2^23
  const Vec lowest = set1(-87.0f);
  const Vec clamped = max(lowest, x);  // NaN stays
  const Vec shifted = fma(clamped, set1(1.44269504f), set1(kShift));
  const Vec n = sub(shifted, set1(kShift));
  Vec r = fma(n, set1(-0.693145752f), clamped);  // ln 2 in two parts
  r = fma(n, set1(-1.42860677e-6f), r);
  Vec p = set1(1.0f / 720.0f);
  p = fma(p, r, set1(1.0f / 120.0f));
  p = fma(p, r, set1(1.0f / 24.0f));
  p = fma(p, r, set1(1.0f / 6.0f));
  p = fma(p, r, set1(0.5f));
  p = fma(p, r, set1(1.0f));
  p = fma(p, r, set1(1.0f));
  return zero_below(scale_by_power(p, shifted), x, lowest);
}

// count is a multiple of kLanes; padding holds -inf and becomes 0. As in PyTorch, a row with a NaN,
// with +inf, or with -inf alone becomes NaN.
EFFV2_INLINE void softmax_row(float* row, int count) {
  Vec highest = load(row);
  for (int i = kLanes; i < count; i += kLanes) highest = max(highest, load(row + i));
  const Vec top = set1(reduce_max(highest));
  Vec total = zero();
  for (int i = 0; i < count; i += kLanes) {
    const Vec e = exp_nonpositive(sub(load(row + i), top));
    store(row + i, e);
    total = add(total, e);
  }
  const Vec scale = set1(1.0f / reduce_add(total));
  for (int i = 0; i < count; i += kLanes) store(row + i, mul(load(row + i), scale));
}

}  // namespace effv2::EFFV2_ISA
