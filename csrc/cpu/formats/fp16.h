// fp16: what is stored, multiplied and summed is half precision, but for softmax and means. For processors
// that compute in it, twice as many values at a time as in fp32.
//
// A sum of n products in half precision is off by about u sqrt(n / 2) of its size, u = 2.8e-4 the rounding of
// one value. So sums are of short pieces of the depth; the pieces, far fewer, are added in half precision as
// well, which adds little to that.
#pragma once

namespace effv2::EFFV2_TARGET {

using Stored = Half;
using Operand = Half;
inline constexpr float kLargest = 65504;

inline constexpr int kDepthGroup = 1;
inline constexpr int packed_column(int column) { return column; }
inline constexpr int kDepthBlock = 128;

}  // namespace effv2::EFFV2_TARGET

#include "cpu/formats/broadcast.h"
