// Activations: values of a block, applied where its products and convolutions end.
//
// What is no more than a clamp (ReLU, ReLU6) is applied to sums in registers; the others in place, while the
// values are in the nearest cache. GELU works on scaled values (see gelu.h): whoever packs weights multiplies
// those in front of an activation by before(), and those behind it by after().
#pragma once

#include <limits>

#include "cpu/tiles/gelu.h"
#include "cpu/tiles/gemm.h"
#include "cpu/tiles/softmax.h"
#include "engine/spec.h"

namespace effv2::EFFV2_TARGET {

inline double before(Activation a) { return a == Activation::gelu ? kBeforeGelu : 1; }
inline double after(Activation a) { return a == Activation::gelu ? kAfterGelu : 1; }

inline Clamp clamp_of(Activation a) {
  if (a == Activation::relu) return {true, 0, std::numeric_limits<float>::infinity()};
  if (a == Activation::relu6) return {true, 0, 6};
  return {};
}

// x / (1 + e^-x), by the exponential of -|x|; in floats, since halves do not hold 1.44 times all that they
// are given.
EFFV2_INLINE Vec silu(Vec x) {
  const Vec e = narrowed(exp2_nonpositive(mul(widened(abs(x)), wide(-kLog2E))));
  return div(fma(min(zero(), x), e, max(zero(), x)), add(set1(1.0f), e));
}

EFFV2_INLINE Vec hardswish(Vec x) {
  const Vec gate = min(set1(6.0f), max(zero(), add(x, set1(3.0f))));
  return mul(x, mul(gate, set1(1.0f / 6)));
}

template <class Function>
inline void apply(Operand* p, std::int64_t values, Function f) {
  for (; values >= kLanes; values -= kLanes, p += kLanes) store(p, f(load(p)));
  if (values > 0) {
    const int rest = static_cast<int>(values);
    store_n(p, f(load_n(p, rest)), rest);
  }
}

// In place, unless clamp_of() says it all. Final: the values leave the block, so that nothing behind them
// takes after() into account.
template <bool Final = false>
inline void activate(Activation a, Operand* p, std::int64_t values) {
  if (a == Activation::gelu) return gelu<Final>(p, values);
  if (a == Activation::silu) return apply(p, values, [](Vec x) { return silu(x); });
  if (a == Activation::hardswish) return apply(p, values, [](Vec x) { return hardswish(x); });
}

}  // namespace effv2::EFFV2_TARGET
