// What AVX-512 has room for in its vectors and registers; see avx512.h.
#pragma once

namespace effv2::EFFV2_TARGET {

inline constexpr int kLanes = 16;
inline constexpr int kGeluVectors = 4;
inline constexpr int kGeluGroups = 1;    // between two branches
inline constexpr int kTogether = 7;      // pixels of a depthwise convolution, beside its nine weights
inline constexpr int kRowsTogether = 1;  // of its outputs
inline constexpr int kSumVectors = 1;    // of a softmax's total

}  // namespace effv2::EFFV2_TARGET
