// How the sums of a tile go along the depth of a product: step by step, or by lane, where the instruction set
// multiplies so (formats/by_lane.h).
#pragma once

#include "cpu/tiles/gemm.h"

namespace effv2::EFFV2_TARGET {

#ifdef EFFV2_BY_LANE

// kRun steps without a branch between them.
template <int RowCount, int Vectors, class Right, class RowsAt>
EFFV2_INLINE const Right* multiply_run(RowsAt& rows, const Right* b_row, std::int64_t b_stride,
                                       Vec (&sum)[RowCount][Vectors]) {
#pragma GCC unroll 4
  for (int k = 0; k < kRun; k += 2 * kLaneSteps) b_row = multiply_twice(rows, b_row, b_stride, sum);
  return b_row;
}

// sum += rows at p, p + a.row_stride, ... times `steps` rows of b; block_left: steps before the rows' next
// block. Weights are not fetched ahead: they lie one behind the other, which processors see by themselves,
// and small cores issue nothing else meanwhile.
template <int RowCount, int Vectors, class Right>
EFFV2_INLINE void sum_depth(const Rows& a, const Operand* p, int steps, int block_left, const Right* b_row,
                            std::int64_t b_stride, Vec (&sum)[RowCount][Vectors], Ahead&) {
  // Of a map in panels, each run is a block.
  if (a.block == kRun && a.row_stride == kPanel) {
    RowsOfPanel<kPanel> rows{p};
    for (; steps >= kRun; steps -= kRun, rows.skip(a.block_stride - kRun)) {
      b_row = multiply_run(rows, b_row, b_stride, sum);
    }
    p = rows.first();
  }
  if (steps <= 0) return;
  for (RowsAnywhere<RowCount> rows(p, a.row_stride);;) {
    int count = steps < block_left ? steps : block_left;
    steps -= count;
    for (; count >= kRun; count -= kRun) b_row = multiply_run(rows, b_row, b_stride, sum);
    for (; count >= kLaneSteps; count -= kLaneSteps) b_row = multiply_lanes(rows, b_row, b_stride, sum);
    for (; count > 0; --count, b_row += b_stride, rows.skip(1)) {
      multiply(rows.first(), a.row_stride, b_row, sum);
    }
    if (steps == 0) return;
    rows.skip(a.block_stride - a.block);
    block_left = a.block;
  }
}

#else

template <int RowCount, int Vectors, class Right>
EFFV2_INLINE void sum_depth(const Rows& a, const Operand* p, int steps, int block_left, const Right* b_row,
                            std::int64_t b_stride, Vec (&sum)[RowCount][Vectors], Ahead& soon) {
  const std::int64_t stride = a.row_stride;
  for (int left = steps; left > 0;) {
    int run = left < kRun ? left : kRun;
    if (run > block_left) run = block_left;
    left -= run;
    block_left -= run;
    soon.fetch();
    if (a.fresh) {
#pragma GCC unroll 16
      for (int i = 0; i < RowCount; ++i) prefetch(p + (RowCount + i) * stride);
    }
    const Operand* const run_end = p + run;
#pragma GCC unroll kStepsOfRound
    for (; p < run_end; p += kDepthGroup, b_row += b_stride) multiply(p, stride, b_row, sum);
    if (block_left == 0) {
      p += a.block_stride - a.block;
      block_left = a.block;
    }
  }
}

#endif

// One row, from `begin` to `end`, times panels that lie `panel_step` apart.
template <int Panels, class Right>
EFFV2_INLINE void sum_row(const Operand* row, int begin, int end, Panel<Right> b, std::int64_t panel_step,
                          Vec (&sum)[Panels][1][kTileVectors]) {
  const Right* b_row = b.below(begin).data;
  int k = begin;
#ifdef EFFV2_BY_LANE
  for (; end - k >= kLaneSteps; k += kLaneSteps, b_row += kLaneSteps * b.stride) {
#pragma GCC unroll 8
    for (int p = 0; p < Panels; ++p) {
      RowsOfPanel<kPanel> at{row + k};
      multiply_lanes(at, b_row + p * panel_step, b.stride, sum[p]);
    }
  }
#endif
  for (; k < end; k += kDepthGroup, b_row += b.stride * kDepthGroup) {
#pragma GCC unroll 8
    for (int p = 0; p < Panels; ++p) multiply(row + k, 0, b_row + p * panel_step, sum[p]);
  }
}

}  // namespace effv2::EFFV2_TARGET
