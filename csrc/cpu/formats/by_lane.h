// For instruction sets that multiply by one lane of a vector: a row's next kLanes values of the depth are
// loaded together, and no value is broadcast. A target gives
//
//   fma_lane<Lane>(row, b, sum)   sum + b times a lane of row, rounded once
//   load_four(p, v)               v[0] ... v[3] by one instruction
//   load_two(p, v, w)             v and w likewise, and p steps on
//   kRegisters                    that vectors have
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

// Where a product stands in rows of the left operand. next(i, taken) is a row's next vector of steps, behind
// those `taken` since passed(steps) was told of all rows; next_two(i, ...) are two, by one instruction.
//
// Rows that lie anywhere: each has an address, which its loads step on. Left alone, compilers would step on
// all of them together, by instructions of their own.
template <int RowCount>
struct RowsAnywhere {
  RowsAnywhere(const Operand* p, std::int64_t stride) {
#pragma GCC unroll 16
    for (int i = 0; i < RowCount; ++i) row[i] = p + i * stride;
  }
  Vec next(int i, int) {
    const Vec v = load(row[i]);
    row[i] = opaque(row[i] + kLanes);
    return v;
  }
  void next_two(int i, Vec& first, Vec& second) { load_two(row[i], first, second); }
  void passed(int) {}
  void skip(std::int64_t values) {
#pragma GCC unroll 16
    for (int i = 0; i < RowCount; ++i) row[i] += values;
  }
  const Operand* first() const { return row[0]; }

 private:
  const Operand* row[RowCount];
};
// Rows of a map in panels: one address and constants.
template <int Stride>
struct RowsOfPanel {
  Vec next(int i, int taken) const { return load(data + i * Stride + taken); }
  void next_two(int i, Vec& first, Vec& second) const {
    first = next(i, 0);
    second = next(i, kLanes);
  }
  void passed(int steps) { data += steps; }
  void skip(std::int64_t values) { data += values; }
  const Operand* first() const { return data; }

  const Operand* data;
};

// So many steps, in order: a vector of each row times as many rows of the panel. Returns the row behind
// these.
template <int RowCount, int Vectors, class Right, int... Lanes>
EFFV2_INLINE const Right* multiply_vectors(const Vec (&row)[RowCount], const Right* panel,
                                           std::int64_t panel_stride, Vec (&sum)[RowCount][Vectors],
                                           std::integer_sequence<int, Lanes...>) {
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
template <int RowCount, int Vectors, class Right>
EFFV2_INLINE const Right* multiply_vectors(const Vec (&row)[RowCount], const Right* panel,
                                           std::int64_t panel_stride, Vec (&sum)[RowCount][Vectors]) {
  return multiply_vectors(row, panel, panel_stride, sum, std::make_integer_sequence<int, kLaneSteps>{});
}
template <int RowCount, int Vectors, class Right, class RowsAt>
EFFV2_INLINE const Right* multiply_lanes(RowsAt& rows, const Right* panel, std::int64_t panel_stride,
                                         Vec (&sum)[RowCount][Vectors]) {
  Vec row[RowCount];
#pragma GCC unroll 16
  for (int i = 0; i < RowCount; ++i) row[i] = rows.next(i, 0);
  rows.passed(kLaneSteps);
  return multiply_vectors(row, panel, panel_stride, sum);
}

// Twice as many steps. Of as many rows as registers are left for, both vectors come by one instruction.
template <int RowCount, int Vectors, class Right, class RowsAt>
EFFV2_INLINE const Right* multiply_twice(RowsAt& rows, const Right* panel, std::int64_t panel_stride,
                                         Vec (&sum)[RowCount][Vectors]) {
  constexpr int kFree = kRegisters - (RowCount + 1) * Vectors - RowCount;
  constexpr int kPairs = kFree < 0 ? 0 : kFree < RowCount ? kFree : RowCount;
  Vec row[RowCount], next[RowCount];
#pragma GCC unroll 16
  for (int i = 0; i < kPairs; ++i) rows.next_two(i, row[i], next[i]);
#pragma GCC unroll 16
  for (int i = kPairs; i < RowCount; ++i) row[i] = rows.next(i, 0);
  panel = multiply_vectors(row, panel, panel_stride, sum);
#pragma GCC unroll 16
  for (int i = kPairs; i < RowCount; ++i) next[i] = rows.next(i, kLaneSteps);
  rows.passed(2 * kLaneSteps);
  return multiply_vectors(next, panel, panel_stride, sum);
}

}  // namespace effv2::EFFV2_TARGET
