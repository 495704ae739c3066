// What AVX2 has room for in its vectors and registers; see avx2.h.
#pragma once

namespace effv2::EFFV2_TARGET {

inline constexpr int kLanes = 8;
inline constexpr int kGeluVectors = 2;   // more do not fit into the registers
inline constexpr int kGeluGroups = 1;    // between two branches
inline constexpr int kTogether = 3;      // pixels of a depthwise convolution, beside its nine weights
inline constexpr int kRowsTogether = 1;  // of its outputs
inline constexpr int kSumVectors = 1;    // of a softmax's total

}  // namespace effv2::EFFV2_TARGET
