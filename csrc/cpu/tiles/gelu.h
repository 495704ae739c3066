// GELU(x) = x * Phi(x) = max(x, 0) - a * Phi(-a) with a = |x|.
//
// How a * Phi(-a) is found depends on what the ISA is good at: see gelu_root.h and gelu_table.h. max(x, 0) is
// written (x + |x|) / 2 because that is NaN for -Inf, as x * Phi(x) is.
//
// Both work on scaled values, which saves multiplications: the input is s * x and the output 2 s * GELU(x).
// The factors go into the weights before and behind, which whoever packs weights must remember. s is 5 times
// a power of two, so that integers and their sums stay exact.
#pragma once

#include <cstdint>

#include "cpu/target.h"

#ifdef EFFV2_TABLE_LOOKUP
#include "cpu/tiles/gelu_table.h"
#else
#include "cpu/tiles/gelu_root.h"
#endif

namespace effv2::EFFV2_TARGET {

inline constexpr double kAfterGelu = 0.5 / kBeforeGelu;
inline constexpr double kBetweenGelus = kAfterGelu * kBeforeGelu;

// Count vectors at p, in place; Unscaled: the output is GELU(x) itself. Returns the last of what was found.
template <int Count, bool Unscaled>
EFFV2_INLINE Vec gelu_vectors(Operand* p) {
  Vec values[Count];
  gelu_values(p, values);
#pragma GCC unroll 8
  for (int i = 0; i < Count; ++i) {
    store(p + i * kLanes, Unscaled ? mul(values[i], set1(static_cast<float>(kAfterGelu))) : values[i]);
  }
  return values[Count - 1];
}

// So many groups of vectors without a branch between them, in place, one behind the other: registers are
// short for more at a time. Returns what lies behind them.
template <int Groups, bool Unscaled>
EFFV2_INLINE Operand* gelu_groups(Operand* p) {
  constexpr int kStep = kGeluVectors * kLanes;
#pragma GCC unroll 8
  for (int i = 0; i < Groups; ++i) {
    const auto last = gelu_vectors<kGeluVectors, Unscaled>(p + i * kStep);
    if constexpr (Groups > 1) p = behind(last, p);
  }
  return p + Groups * kStep;
}

// Of so many values, in place.
template <bool Unscaled = false>
inline void gelu(Operand* p, std::int64_t count) {
  constexpr int kStep = kGeluVectors * kLanes, kRound = kGeluGroups * kStep;
  for (; count >= kRound; count -= kRound) p = gelu_groups<kGeluGroups, Unscaled>(p);
  for (; count >= kStep; count -= kStep) p = gelu_groups<1, Unscaled>(p);
  for (; count >= kLanes; count -= kLanes, p += kLanes) gelu_vectors<1, Unscaled>(p);
  if (count > 0) {
    alignas(64) Operand rest[kLanes];
    store(rest, load_n(p, static_cast<int>(count)));
    gelu_vectors<1, Unscaled>(rest);
    store_n(p, load(rest), static_cast<int>(count));
  }
}

}  // namespace effv2::EFFV2_TARGET
