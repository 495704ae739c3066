// Counting: maps and weights have the layout of fp32, but nothing is computed from them; multiply-adds are
// counted instead, as many as vectors have lanes, whether or not there is a channel in each. For `scaling`:
// how evenly the blocks divide their work among threads, without the instruction set and without timing.
// Included by targets behind the sizes of an instruction set's vectors and tiles.
#pragma once

#include <cstdint>

#include "engine/effort.h"

namespace effv2::EFFV2_TARGET {

using Stored = float;
inline constexpr float kLargest = 3.40282347e38f;

inline constexpr int kDepthGroup = 1;
inline constexpr int packed_column(int column) { return column; }

inline void count_vectors(int vectors) { counted_multiply_adds += std::int64_t{vectors} * kLanes; }

// All that is known of a vector: whether it was loaded. A depthwise convolution multiplies what it loads; the
// polynomials of activations multiply by constants, which are no multiply-adds of a network.
struct Vec {
  bool loaded = false;
};

inline Vec fma(Vec a, Vec b, Vec) {
  if (a.loaded && b.loaded) count_vectors(1);
  return {};
}

inline Vec load(const float*) { return {true}; }
inline Vec load_n(const float*, int) { return {true}; }
inline void store(float*, Vec) {}
inline void store_n(float*, Vec, int) {}
inline void keep(Vec&) {}
inline void prefetch(const void*) {}

inline Vec set1(float) { return {}; }
inline Vec zero() { return {}; }
inline Vec add(Vec, Vec) { return {}; }
inline Vec sub(Vec, Vec) { return {}; }
inline Vec mul(Vec, Vec) { return {}; }
inline Vec div(Vec, Vec) { return {}; }
inline Vec fnma(Vec, Vec, Vec) { return {}; }
inline Vec max(Vec, Vec) { return {}; }
inline Vec min(Vec, Vec) { return {}; }
inline Vec abs(Vec) { return {}; }
inline Vec scale_by_power(Vec, Vec) { return {}; }
inline Vec zero_below(Vec, Vec, Vec) { return {}; }
inline float reduce_add(Vec) { return 1; }
inline float reduce_max(Vec) { return 1; }

}  // namespace effv2::EFFV2_TARGET

#include "cpu/formats/float_operands.h"

namespace effv2::EFFV2_TARGET {

template <int RowCount, int Vectors, class Right>
EFFV2_INLINE void multiply(const float*, std::int64_t, const Right*, Vec (&)[RowCount][Vectors]) {
  count_vectors(RowCount * Vectors);
}
}  // namespace effv2::EFFV2_TARGET
