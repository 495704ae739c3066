// The vector type of the ISA that this translation unit is compiled for. The build compiles every
// file under cpu/ that includes this once per ISA, with EFFV2_ISA (the namespace) and
// EFFV2_SIMD_HEADER set, and with that ISA's compiler flags.
//
// Every header defines the same names: Vec and kLanes; the shape of the matrix tile, kTileRows x
// kTileVectors, and the rows of a tile one vector wider; how many vectors a GELU and how many pixels a
// depthwise convolution take together; loads and stores of whole vectors and of the first n lanes;
// arithmetic; and a prefetch. One that defines EFFV2_TABLE_LOOKUP adds what gelu_table.h needs. Nothing
// outside these headers names an ISA.
#pragma once

#define EFFV2_INLINE inline __attribute__((always_inline))

#include EFFV2_SIMD_HEADER

namespace effv2::EFFV2_ISA {

// Weights are packed, and scratch maps are laid out, in panels of this many channels.
inline constexpr int kPanel = kTileVectors * kLanes;
// What is left of the columns of a matrix, if it fits into one vector, joins the panel before it.
inline constexpr int kWidePanel = kPanel + kLanes;

inline constexpr int kCacheLine = 16;  // floats

inline constexpr int panels_of(int channels) { return (channels + kPanel - 1) / kPanel; }
inline constexpr int round_up(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }

}  // namespace effv2::EFFV2_ISA
