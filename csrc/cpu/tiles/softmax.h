// Softmax of a row in place, in base 2, and the exponential it needs.
#pragma once

#include "cpu/target.h"

namespace effv2::EFFV2_TARGET {

// Logits come multiplied by log2(e), which is folded into the weights, so that the softmax needs only
// powers of two.
inline constexpr float kLog2E = 1.44269504f;

// 2^x for x <= 0 (or NaN): x = n + f with |f| <= 1/2; 2^f by a minimax polynomial, then times 2^n.
// Below -125 the result is 0. The relative error stays below 2e-7.
EFFV2_INLINE Wide exp2_nonpositive(Wide x) {
  constexpr float kShift = 12582912.0f;  // 1.5 * 2^23
  const Wide lowest = wide(-125.0f);
  const Wide clamped = max(lowest, x);  // NaN stays
  const Wide shifted = add(clamped, wide(kShift));
  const Wide f = sub(clamped, sub(shifted, wide(kShift)));
  Wide p = wide(0.00132764713f);
  p = fma(p, f, wide(0.00967554096f));
  p = fma(p, f, wide(0.0555071309f));
  p = fma(p, f, wide(0.240221202f));
  p = fma(p, f, wide(0.693146944f));
  p = fma(p, f, wide(1.00000012f));
  return zero_below(scale_by_power(p, shifted), x, lowest);
}

// count is a multiple of kLanes; padding holds -inf and becomes 0. As in PyTorch, a row with a NaN,
// with +inf, or with -inf alone becomes NaN.
EFFV2_INLINE void softmax_row(Operand* row, int count) {
  Vec highest = load(row);
#pragma GCC unroll 4
  for (int i = kLanes; i < count; i += kLanes) highest = max(highest, load(row + i));
  const Wide top = wide(reduce_max(highest));
  Wide total[kSumVectors];
  for (Wide& t : total) t = wide(0.0f);
  const auto take = [&](Operand* p, int v) __attribute__((always_inline)) {
    const Wide e = exp2_nonpositive(sub(widened(load(p)), top));
    store(p, narrowed(e));
    total[v] = add(total[v], e);
  };
  constexpr int kRound = kSumVectors * kLanes;
  int done = 0;
  for (; done + kRound <= count; done += kRound) {
#pragma GCC unroll 8
    for (int v = 0; v < kSumVectors; ++v) take(row + done + v * kLanes, v);
  }
  for (int v = 0; done < count; done += kLanes, ++v) take(row + done, v);
  for (int v = 1; v < kSumVectors; ++v) total[0] = add(total[0], total[v]);
  const Vec scale = set1(1.0f / reduce_add(total[0]));
#pragma GCC unroll 4
  for (int i = 0; i < count; i += kLanes) store(row + i, mul(load(row + i), scale));
}

}  // namespace effv2::EFFV2_TARGET
