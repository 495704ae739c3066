// fp32 on NEON.
#pragma once

#include "cpu/simd/neon.h"
#include "cpu/targets/neon_tile.h"

namespace effv2::EFFV2_TARGET {

// Lane of the row's vector times b, onto sum.
template <int Lane>
inline Vec fma_lane(Vec row, Vec b, Vec sum) {
  return vfmaq_laneq_f32(sum, b, row, Lane);
}

inline void load_four(const float* p, Vec* v) {
  const float32x4x4_t four = vld1q_f32_x4(p);
  for (int i = 0; i < 4; ++i) v[i] = four.val[i];
}

}  // namespace effv2::EFFV2_TARGET

#include "cpu/formats/fp32.h"

#include "cpu/formats/by_lane.h"
