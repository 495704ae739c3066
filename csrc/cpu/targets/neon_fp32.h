// fp32 on NEON.
#pragma once

#include "cpu/simd/neon.h"

namespace effv2::EFFV2_TARGET {

// 5 x 4 accumulators, 4 weight vectors, and 4 steps of the depth of each row fill 29 of the 32 registers.
inline constexpr int kTileRows = 5;
inline constexpr int kTileVectors = 4;
inline constexpr int kWideTileRows = 4;
inline constexpr int kNarrowTileRows = 8;
inline constexpr int kStepsOfRound = 1;

// Lane of the row's vector times b, onto sum.
template <int Lane>
inline Vec fma_lane(Vec row, Vec b, Vec sum) {
  return vfmaq_laneq_f32(sum, b, row, Lane);
}

// The first Vectors vectors of a row of a panel, by as few instructions as there are for that.
template <int Vectors>
inline void load_together(const float* panel, Vec (&columns)[Vectors]) {
  if constexpr (Vectors >= 4) {
    const float32x4x4_t four = vld1q_f32_x4(panel);
    for (int v = 0; v < 4; ++v) columns[v] = four.val[v];
    if constexpr (Vectors > 4) columns[4] = load(panel + 4 * kLanes);
  } else {
    for (int v = 0; v < Vectors; ++v) columns[v] = load(panel + v * kLanes);
  }
}

}  // namespace effv2::EFFV2_TARGET

#include "cpu/formats/by_lane.h"
#include "cpu/formats/fp32.h"
