// bf16 storage: maps between blocks and packed weights are kept in bf16, everything is computed in float. For
// processors without instructions for bf16: half the memory at the speed of fp32. A target gives
//
//   widen(p)                      a vector of float from kLanes values
//   narrow(p, v)                  back, to the nearest, ties to even; a NaN stays one
//   widen_pair(p, first, second)  two vectors from 2 kLanes values, in the order of packed_column()
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/formats/float_operands.h"

namespace effv2::EFFV2_TARGET {

struct Bf16 {
  std::uint16_t bits;

  Bf16() = default;
  // To the nearest, ties to even; a NaN stays one.
  explicit Bf16(float value) {
    std::uint32_t u;
    std::memcpy(&u, &value, sizeof u);
    const bool nan = (u & 0x7fffffffu) > 0x7f800000u;
    bits = static_cast<std::uint16_t>(nan ? u >> 16 | 0x40u : (u + 0x7fffu + (u >> 16 & 1u)) >> 16);
  }
  operator float() const {
    const std::uint32_t u = std::uint32_t{bits} << 16;
    float value;
    std::memcpy(&value, &u, sizeof value);
    return value;
  }
};

using Stored = Bf16;
inline constexpr float kLargest = 0x1.fep127f;

inline constexpr int kDepthGroup = 1;

// Columns of two vectors lie interleaved in fours, so that unpacking with zeros, which works within 128 bits,
// makes both of one load: 0-3, 8-11, 4-7, 12-15 where a vector has eight. A third vector follows in order.
inline constexpr int packed_column(int column) {
  if (column >= 2 * kLanes) return column;
  return column % 4 + column / kLanes * 4 + column % kLanes / 4 * 8;
}

inline Vec load(const Bf16* p) { return widen(&p->bits); }
inline void store(Bf16* p, Vec v) { narrow(&p->bits, v); }
inline Vec load_n(const Bf16* p, int count) {
  Bf16 all[kLanes] = {};
  std::memcpy(all, p, static_cast<std::size_t>(count) * sizeof(Bf16));
  return load(all);
}
inline void store_n(Bf16* p, Vec v, int count) {
  Bf16 all[kLanes];
  store(all, v);
  std::memcpy(p, all, static_cast<std::size_t>(count) * sizeof(Bf16));
}

// The first Vectors vectors of a row of a panel of packed weights, which has at least two.
template <int Vectors>
EFFV2_INLINE void load_columns(const Bf16* panel, Vec (&columns)[Vectors]) {
  Vec second;
  widen_pair(&panel->bits, columns[0], second);
  if constexpr (Vectors > 1) columns[1] = second;
  if constexpr (Vectors > 2) columns[2] = load(panel + 2 * kLanes);
}

}  // namespace effv2::EFFV2_TARGET

#include "cpu/formats/broadcast.h"
