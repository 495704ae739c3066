// Softmax of a row in place, in base 2, and the exponential it needs.
#pragma once

#include "cpu/target.h"

namespace effv2::EFFV2_TARGET {

// Logits come multiplied by log2(e), which is folded into the weights, so that the softmax needs only
// powers of two.
inline constexpr float kLog2E = 1.44269504f;

// 2^x for x <= 0 (or NaN): x = n + f with |f| <= 1/2; 2^f by a minimax polynomial, then times 2^n.
// Below -125 the result is 0. The relative error stays below 2e-7.
EFFV2_INLINE Vec exp2_nonpositive(Vec x) {
  constexpr float kShift = 12582912.0f;  // 1.5 * 2^23
  const Vec lowest = set1(-125.0f);
  const Vec clamped = max(lowest, x);  // NaN stays
  const Vec shifted = add(clamped, set1(kShift));
  const Vec f = sub(clamped, sub(shifted, set1(kShift)));
  Vec p = set1(0.00132764713f);
  p = fma(p, f, set1(0.00967554096f));
  p = fma(p, f, set1(0.0555071309f));
  p = fma(p, f, set1(0.240221202f));
  p = fma(p, f, set1(0.693146944f));
  p = fma(p, f, set1(1.00000012f));
  return zero_below(scale_by_power(p, shifted), x, lowest);
}

// count is a multiple of kLanes; padding holds -inf and becomes 0. As in PyTorch, a row with a NaN,
// with +inf, or with -inf alone becomes NaN.
EFFV2_INLINE void softmax_row(float* row, int count) {
  Vec highest = load(row);
  for (int i = kLanes; i < count; i += kLanes) highest = max(highest, load(row + i));
  const Vec top = set1(reduce_max(highest));
  Vec total[kSumVectors];
  for (Vec& t : total) t = zero();
  for (int i = 0; i < count; i += kSumVectors * kLanes) {
    for (int v = 0; v < kSumVectors && i + v * kLanes < count; ++v) {
      float* const p = row + i + v * kLanes;
      const Vec e = exp2_nonpositive(sub(load(p), top));
      store(p, e);
      total[v] = add(total[v], e);
    }
  }
  for (int v = 1; v < kSumVectors; ++v) total[0] = add(total[0], total[v]);
  const Vec scale = set1(1.0f / reduce_add(total[0]));
  for (int i = 0; i < count; i += kLanes) store(row + i, mul(load(row + i), scale));
}

}  // namespace effv2::EFFV2_TARGET
