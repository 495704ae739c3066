// fp32: what is stored, multiplied and summed is float. Included by targets behind their vectors.
#pragma once

#include "cpu/formats/float_operands.h"

namespace effv2::EFFV2_TARGET {

using Stored = float;
inline constexpr float kLargest = 3.40282347e38f;

inline constexpr int kDepthGroup = 1;
inline constexpr int packed_column(int column) { return column; }

}  // namespace effv2::EFFV2_TARGET

#include "cpu/formats/broadcast.h"
