// What NEON has room for where it computes in half precision; see neon_half.h.
#pragma once

namespace effv2::EFFV2_TARGET {

inline constexpr int kLanes = 8;
inline constexpr int kGeluVectors = 4;
inline constexpr int kGeluGroups = 4;    // between two branches
inline constexpr int kTogether = 7;      // pixels of a depthwise convolution, beside its nine weights
inline constexpr int kRowsTogether = 2;  // of its outputs
inline constexpr int kSumVectors = 1;    // of a softmax's total

}  // namespace effv2::EFFV2_TARGET
