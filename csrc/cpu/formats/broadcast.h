// One step of a product: every element of a row is broadcast and multiplied by the vectors of a row of the
// panel.
#pragma once

namespace effv2::EFFV2_TARGET {

// The first Vectors vectors of a row of a panel of operands. Formats add theirs for packed weights.
template <int Vectors>
EFFV2_INLINE void load_columns(const Operand* panel, Vec (&columns)[Vectors]) {
#pragma GCC unroll 8
  for (int v = 0; v < Vectors; ++v) columns[v] = load(panel + v * kLanes);
}

// One step of the depth: rows at a, a + a_stride, ... times one row of the panel.
template <int RowCount, int Vectors, class Right>
EFFV2_INLINE void multiply(const Operand* a, std::int64_t a_stride, const Right* panel,
                           Vec (&sum)[RowCount][Vectors]) {
  Vec columns[Vectors];
  load_columns(panel, columns);
#pragma GCC unroll 16
  for (int i = 0; i < RowCount; ++i) {
    const Vec x = broadcast(a + i * a_stride);
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) sum[i][v] = fma(x, columns[v], sum[i][v]);
  }
}

}  // namespace effv2::EFFV2_TARGET
