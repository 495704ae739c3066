// Formats whose products take floats: what a block computes in, and the floats that it needs where fewer
// digits would not do, are one.
#pragma once

namespace effv2::EFFV2_TARGET {

using Operand = float;

// As many floats as a vector has lanes.
using Wide = Vec;
inline Wide widened(Vec v) { return v; }
inline Vec narrowed(Wide v) { return v; }
inline Wide wide(float value) { return set1(value); }

// Values of the depth that are summed in one go; see cpu/tiles/gemm.h.
inline constexpr int kDepthBlock = 256;

// Nothing that a network computes comes near what floats hold.
inline void clear_overflow() {}
inline bool overflowed() { return false; }

}  // namespace effv2::EFFV2_TARGET
