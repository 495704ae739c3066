// The shape of NEON's register tile, in either precision; and that its multiply-add overwrites the addend.
#pragma once

#define EFFV2_FMA_OVERWRITES

namespace effv2::EFFV2_TARGET {

// 5 x 4 accumulators, 4 weight vectors, and a vector of steps of the depth of each row fill 29 of the 32
// registers; the others hold the next steps of three rows (formats/by_lane.h).
inline constexpr int kRegisters = 32;
inline constexpr int kTileRows = 5;
inline constexpr int kTileVectors = 4;
inline constexpr int kWideTileRows = 4;
inline constexpr int kNarrowTileRows = 8;
inline constexpr int kStepsOfRound = 1;

}  // namespace effv2::EFFV2_TARGET
