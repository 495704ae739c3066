// The target that this translation unit is compiled for: an instruction set and a number format. The build
// compiles every file under cpu/ that includes this once per target, with EFFV2_TARGET (the namespace) and
// EFFV2_TARGET_HEADER set, and with the flags of the instruction set.
//
// A target's header takes the vectors of its instruction set (cpu/simd/), says how large a tile of sums fits
// into the registers, and takes or defines a format (cpu/formats/):
//
//   Stored          what maps between blocks, and packed weights, are kept in
//   Operand         what is computed with: maps inside of a block, which are left operands of products, and
//                   right ones that come unpacked; biases, taps of depthwise convolutions
//   Vec, Wide       vectors of kLanes operands, and of as many floats; widened(), narrowed(), wide(value)
//   kDepthBlock     values of the depth that are summed in one go
//   kLargest        the largest value of Stored
//   kTileRows, kTileVectors   rows and vectors of sums in registers
//   kWideTileRows   rows of a tile that is one vector wider
//   kNarrowTileRows   rows of a tile of at most half as many vectors
//   kStepsOfRound   steps of the depth between two counts of a tile's loop
//   kDepthGroup     values of the depth that one step of a product takes together
//   packed_column() where a column of packed weights lies among those of its panel
//   multiply()      one step: sums += rows of Operand times columns of a panel
//   load(), store() and their _n forms between vectors of operands and Stored or Operand, rounding to nearest
//   clear_overflow(), overflowed()   whether a value of this thread went beyond kLargest
//
// Softmax and means are in float. Nothing outside of cpu/simd/, cpu/formats/ and
// cpu/targets/ names an instruction set or a format.
#pragma once

#define EFFV2_INLINE inline __attribute__((always_inline))

namespace effv2::EFFV2_TARGET {

// A pointer that the compiler knows nothing about.
template <class T>
EFFV2_INLINE T* opaque(T* pointer) {
  asm("" : "+r"(pointer));
  return pointer;
}

}  // namespace effv2::EFFV2_TARGET

#include EFFV2_TARGET_HEADER

#include <cstdint>
#include <type_traits>

namespace effv2::EFFV2_TARGET {

// Weights are packed, and scratch maps are laid out, in panels of this many channels.
inline constexpr int kPanel = kTileVectors * kLanes;
// What is left of the columns of a matrix, if it fits into one vector, joins the panel before it.
inline constexpr int kWidePanel = kPanel + kLanes;

inline constexpr int kCacheLine = 64;  // bytes

// Whether products read and write stored maps as they are.
inline constexpr bool kStoredAsOperands = std::is_same_v<Stored, Operand>;

inline constexpr int panels_of(int channels) { return (channels + kPanel - 1) / kPanel; }
inline constexpr int round_up(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }

// Fetches memory before it is needed.
inline void prefetch_bytes(const void* begin, std::int64_t bytes) {
  const char* const p = static_cast<const char*>(begin);
  for (std::int64_t i = 0; i < bytes; i += kCacheLine) prefetch(p + i);
}

}  // namespace effv2::EFFV2_TARGET
