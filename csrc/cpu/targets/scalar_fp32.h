#pragma once

#include "cpu/simd/scalar.h"

namespace effv2::EFFV2_TARGET {

inline constexpr int kTileRows = 4;
inline constexpr int kTileVectors = 2;
inline constexpr int kWideTileRows = 2;
inline constexpr int kNarrowTileRows = kTileRows;
inline constexpr int kStepsOfRound = 1;

}  // namespace effv2::EFFV2_TARGET

#include "cpu/formats/fp32.h"
