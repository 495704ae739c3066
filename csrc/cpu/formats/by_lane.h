// For instruction sets that multiply by one lane of a vector: a row's next kLanes values of the depth are
// loaded together, and no value is broadcast. A target gives
//
//   fma_lane<Lane>(row, b, sum)   sum + b times a lane of row, rounded once
//   load_four(p, v)               v[0] ... v[3] by one instruction
//   behind(v, p)                  p, from which nothing is read before v is known
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

#define EFFV2_BY_LANE

namespace effv2::EFFV2_TARGET {

// The first Vectors vectors of a row of a panel, by as few instructions as there are for that.
template <int Vectors>
EFFV2_INLINE void load_together(const Operand* panel, Vec (&columns)[Vectors]) {
  if constexpr (Vectors >= 4) load_four(panel, columns);
  for (int v = Vectors >= 4 ? 4 : 0; v < Vectors; ++v) columns[v] = load(panel + v * kLanes);
}

// p, from which nothing is read before all sums are known.
template <int RowCount, int Vectors, class Right, int... At>
EFFV2_INLINE const Right* behind_all(const Vec (&sum)[RowCount][Vectors], const Right* p,
                                     std::integer_sequence<int, At...>) {
  ((p = behind(sum[At / Vectors][At % Vectors], p)), ...);
  return p;
}

// Steps of the depth that are taken together.
inline constexpr int kLaneSteps = kLanes;

// So many steps, in order: rows at a, a + a_stride, ... times as many rows of the panel. Returns the row
// behind these.
template <int RowCount, int Vectors, class Right, class Stride, int... Lanes>
EFFV2_INLINE const Right* multiply_lanes(const Operand* a, Stride a_stride, const Right* panel,
                                         std::int64_t panel_stride, Vec (&sum)[RowCount][Vectors],
                                         std::integer_sequence<int, Lanes...>) {
  Vec row[RowCount];
#pragma GCC unroll 16
  for (int i = 0; i < RowCount; ++i) row[i] = load(a + i * a_stride);
  const auto step = [&](auto lane) __attribute__((always_inline)) {
    Vec columns[Vectors];
    load_together(panel, columns);
#pragma GCC unroll 16
    for (int i = 0; i < RowCount; ++i) {
#pragma GCC unroll 8
      for (int v = 0; v < Vectors; ++v) {
        sum[i][v] = fma_lane<decltype(lane)::value>(row[i], columns[v], sum[i][v]);
      }
    }
    // The next columns come into the registers of these: compilers would load them into more than are free.
    panel = behind_all(sum, panel + panel_stride, std::make_integer_sequence<int, RowCount * Vectors>{});
  };
  (step(std::integral_constant<int, Lanes>{}), ...);
  return panel;
}
template <int RowCount, int Vectors, class Right, class Stride>
EFFV2_INLINE const Right* multiply_lanes(const Operand* a, Stride a_stride, const Right* panel,
                                         std::int64_t panel_stride, Vec (&sum)[RowCount][Vectors]) {
  return multiply_lanes(a, a_stride, panel, panel_stride, sum, std::make_integer_sequence<int, kLaneSteps>{});
}

}  // namespace effv2::EFFV2_TARGET
