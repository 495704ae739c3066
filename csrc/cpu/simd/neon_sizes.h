// What Arm's NEON has room for in its vectors and registers; see neon.h.
#pragma once

namespace effv2::EFFV2_TARGET {

inline constexpr int kLanes = 4;
inline constexpr int kGeluVectors = 2;
inline constexpr int kGeluGroups = 4;    // between two branches
inline constexpr int kTogether = 7;      // pixels of a depthwise convolution, beside its nine weights
inline constexpr int kRowsTogether = 2;  // of its outputs
inline constexpr int kSumVectors = 2;    // of a softmax's total, which is AVX2's to the bit

}  // namespace effv2::EFFV2_TARGET
