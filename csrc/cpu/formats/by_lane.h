// For instruction sets that multiply by one lane of a vector: a row's next kLanes values of the depth are
// loaded together, and no value is broadcast. A target gives
//
//   fma_lane<Lane>(row, b, sum)      sum + b times a lane of row, rounded once
//   load_together(panel, columns)    the vectors of a row of a panel
//   behind(v, p)                     p, from which nothing is read before v is known
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

#define EFFV2_BY_LANE

namespace effv2::EFFV2_TARGET {

// p, from which nothing is read before all sums are known.
template <int RowCount, int Vectors, class Right, int... At>
EFFV2_INLINE const Right* behind_all(const Vec (&sum)[RowCount][Vectors], const Right* p,
                                     std::integer_sequence<int, At...>) {
  ((p = behind(sum[At / Vectors][At % Vectors], p)), ...);
  return p;
}

// kLanes steps of the depth, in order: rows at a, a + a_stride, ... times as many rows of the panel.
template <int RowCount, int Vectors, class Right, int... Lanes>
EFFV2_INLINE void multiply_lanes(const float* a, std::int64_t a_stride, const Right* panel,
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
}
template <int RowCount, int Vectors, class Right>
EFFV2_INLINE void multiply_lanes(const float* a, std::int64_t a_stride, const Right* panel,
                                 std::int64_t panel_stride, Vec (&sum)[RowCount][Vectors]) {
  multiply_lanes(a, a_stride, panel, panel_stride, sum, std::make_integer_sequence<int, kLanes>{});
}

}  // namespace effv2::EFFV2_TARGET
