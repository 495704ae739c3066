// The tile of formats that multiply floats on AVX-512.
#pragma once

namespace effv2::EFFV2_TARGET {

// 14 x 2 accumulators, 2 weight vectors and 1 broadcast fill 31 of the 32 registers; the widths of maps of
// 224-pixel images are multiples of 14 or 7.
inline constexpr int kTileRows = 14;
inline constexpr int kTileVectors = 2;
inline constexpr int kWideTileRows = 8;
inline constexpr int kNarrowTileRows = kTileRows;
inline constexpr int kStepsOfRound = 1;  // a step has 44 instructions

}  // namespace effv2::EFFV2_TARGET
