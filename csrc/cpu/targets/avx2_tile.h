// The tile of formats that multiply floats on AVX2.
#pragma once

namespace effv2::EFFV2_TARGET {

// 6 x 2 accumulators, 2 weight vectors and 1 broadcast fill 15 of the 16 registers.
inline constexpr int kTileRows = 6;
inline constexpr int kTileVectors = 2;
inline constexpr int kWideTileRows = 4;
inline constexpr int kNarrowTileRows = kTileRows;
// Steps of the depth in one round of a tile's loop: counting takes 3 of 23 instructions, where one step
// has 20.
inline constexpr int kStepsOfRound = 2;

}  // namespace effv2::EFFV2_TARGET
