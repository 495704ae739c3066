// The tiles of a product: one function for each number of rows and vectors that fits into the registers.
#include "cpu/tiles/gemm.h"

#include <utility>

#include "cpu/tiles/depth.h"

namespace effv2::EFFV2_TARGET {
namespace {

// Adds what belongs to a tile of sums and stores it. Whole: all of its columns exist. last: the sum is
// complete.
template <int RowCount, int Vectors, bool Whole, class Out>
EFFV2_INLINE void finish(Vec (&sum)[RowCount][Vectors], const Result<Out>& r, int m, bool last) {
  const int tail = r.columns - (Vectors - 1) * kLanes;  // columns of the last vector
  const auto get = [&](const auto* p, int v) {
    return Whole || v + 1 < Vectors ? load(p + v * kLanes) : load_n(p + v * kLanes, tail);
  };
  // Pointers are opaque: a compiler would keep one for every row of a tile and step all of them from tile to
  // tile, in memory, a fifth of what a product of little depth executes.
  if (r.sum) {
    const Operand* row = opaque(r.sum + m * r.sum_stride);
#pragma GCC unroll 16
    for (int i = 0; i < RowCount; ++i, row += r.sum_stride) {
#pragma GCC unroll 8
      for (int v = 0; v < Vectors; ++v) sum[i][v] = add(sum[i][v], get(row, v));
    }
  }
  if (last && r.bias) {
#pragma GCC unroll 16
    for (int i = 0; i < RowCount; ++i) {
#pragma GCC unroll 8
      for (int v = 0; v < Vectors; ++v) sum[i][v] = add(sum[i][v], load(r.bias + v * kLanes));
    }
  }
  if (last && r.clamp) {
    const Clamp clamp = *r.clamp;
#pragma GCC unroll 16
    for (int i = 0; i < RowCount; ++i) {
#pragma GCC unroll 8
      for (int v = 0; v < Vectors; ++v) sum[i][v] = clamp(sum[i][v]);
    }
  }
  if (last && r.residual) {
    const Out* row = opaque(r.residual + m * r.residual_stride);
#pragma GCC unroll 16
    for (int i = 0; i < RowCount; ++i, row += r.residual_stride) {
#pragma GCC unroll 8
      for (int v = 0; v < Vectors; ++v) sum[i][v] = add(sum[i][v], get(row, v));
    }
  }
  Out* out = opaque(r.out + m * r.out_stride);
#pragma GCC unroll 16
  for (int i = 0; i < RowCount; ++i, out += r.out_stride) {
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) {
      if (Whole || v + 1 < Vectors) {
        store(out + v * kLanes, sum[i][v]);
      } else {
        store_n(out + v * kLanes, sum[i][v], tail);
      }
    }
  }
}

// `tiles` tiles of RowCount rows from row m on, k from begin to end.
template <int Vectors, int RowCount, class Right, class Out>
void run_tiles(const Rows& a, int m, int tiles, Panel<Right> b, int begin, int end, const Result<Out>& result,
               bool last, Ahead& ahead) {
  const Result<Out> r = result;
  Ahead soon = ahead;
  const std::int64_t stride = a.row_stride;
  const bool whole = r.columns >= Vectors * kLanes;
  const int first_block = begin ? begin / a.block : 0;
  const int first_offset = begin - first_block * a.block;
  const Operand* const start = a.data + first_block * a.block_stride + first_offset;
  const Right* const first_row_of_b = b.below(begin).data;
  const std::int64_t b_stride = b.stride * kDepthGroup;

  for (; tiles > 0; --tiles, m += RowCount) {
    Vec sum[RowCount][Vectors];
#pragma GCC unroll 16
    for (int i = 0; i < RowCount; ++i) {
#pragma GCC unroll 8
      for (int v = 0; v < Vectors; ++v) sum[i][v] = zero();
    }
    const Operand* const p = start + m * stride;
    sum_depth(a, p, end - begin, a.block - first_offset, first_row_of_b, b_stride, sum, soon);
    if (whole) {
      finish<RowCount, Vectors, true>(sum, r, m, last);
    } else {
      finish<RowCount, Vectors, false>(sum, r, m, last);
    }
  }
  ahead = soon;
}

template <int Panels, class Right, class Out>
void run_row(const Operand* row, Panel<Right> b, std::int64_t panel_step, int depth,
             const Result<Out>& result) {
  Vec held[Panels][1][kTileVectors] = {};
  for (int begin = 0; begin < depth; begin += kDepthBlock) {
    const int end = depth - begin > kDepthBlock ? begin + kDepthBlock : depth;
    Vec sum[Panels][1][kTileVectors];
#pragma GCC unroll 8
    for (int p = 0; p < Panels; ++p) {
#pragma GCC unroll 8
      for (int v = 0; v < kTileVectors; ++v) sum[p][0][v] = zero();
    }
    sum_row(row, begin, end, b, panel_step, sum);
    for (int p = 0; p < Panels; ++p) {
      for (int v = 0; v < kTileVectors; ++v) {
        held[p][0][v] = begin ? add(sum[p][0][v], held[p][0][v]) : sum[p][0][v];
      }
    }
  }
  Result<Out> r = result;
  for (int p = 0; p < Panels; ++p) {
    finish<1, kTileVectors, true>(held[p], r, 0, true);
    r.out += kPanel;
    if (r.bias) r.bias += kPanel;
    if (r.residual) r.residual += kPanel;
  }
}

// What there is of a tile of so many rows.
template <int Vectors, int RowCount, class Right, class Out>
constexpr RunTiles<Right, Out> tile_run() {
  if constexpr (RowCount > most_rows(Vectors)) {
    return nullptr;
  } else {
    return run_tiles<Vectors, RowCount, Right, Out>;
  }
}

template <int Vectors, class Right, class Out, int... Row>
constexpr void enter(TileRuns<Right, Out>& runs, std::integer_sequence<int, Row...>) {
  ((runs.of[Vectors - 1][Row] = tile_run<Vectors, Row + 1, Right, Out>()), ...);
}

template <class Right, class Out, int... Vectors>
constexpr TileRuns<Right, Out> all(std::integer_sequence<int, Vectors...>) {
  TileRuns<Right, Out> runs{};
  (enter<Vectors + 1>(runs, std::make_integer_sequence<int, kMostTileRows>{}), ...);
  return runs;
}

template <class Right, class Out, int... Panel>
constexpr RowRuns<Right, Out> all_rows(std::integer_sequence<int, Panel...>) {
  return {{run_row<Panel + 1, Right, Out>...}};
}

}  // namespace

template <class Right, class Out>
const TileRuns<Right, Out> TileRuns<Right, Out>::table =
    all<Right, Out>(std::make_integer_sequence<int, kTileVectors + 1>{});

template <class Right, class Out>
const RowRuns<Right, Out> RowRuns<Right, Out>::table =
    all_rows<Right, Out>(std::make_integer_sequence<int, kSideBySide>{});

// Those that blocks ask for. Some are the same where a format stores what it multiplies.
[[gnu::used]] extern const void* const kTileRuns[] = {
    &TileRuns<Operand, Operand>::table, &TileRuns<Stored, Operand>::table, &TileRuns<Stored, Stored>::table,
    &RowRuns<Stored, Stored>::table};

}  // namespace effv2::EFFV2_TARGET
