// Matrix product of rows of activations with a panel of columns: out[m, n] = sum_k a[m, k] * b[k, n].
//
// A register tile holds kTileRows x kTileVectors sums; the format's multiply() adds one step of the depth to
// them. The depth is cut into pieces of kDepthBlock: each piece is summed from zero and the pieces are added
// in order, which bounds the rounding error and keeps a piece of b in the L1 cache. A sum therefore depends
// on the depth alone, never on how rows and columns are divided among tiles or threads; that is what makes
// results bitwise reproducible.
#pragma once

#include <cstdint>

#include "cpu/target.h"

namespace effv2::EFFV2_TARGET {

// The left operand. Element (m, k) lies at
//   data + m * row_stride + (k / block) * block_stride + k % block      (all in values).
// Plain rows of K values have block == K; rows gathered from windows or panels have shorter blocks.
struct Rows {
  const Operand* data;
  std::int64_t row_stride;
  int block;
  std::int64_t block_stride;
  bool fresh = false;  // just written, by other threads as well: fetched from their caches a tile ahead
};

inline Rows plain_rows(const Operand* data, std::int64_t row_stride, int depth, bool fresh = false) {
  return {data, row_stride, depth, 0, fresh};
}
// A map stored in panels, [panel][pixel][kPanel]: the rows are pixels.
inline Rows panel_rows(const Operand* data, std::int64_t pixels, bool fresh = false) {
  return {data, kPanel, kPanel, pixels * kPanel, fresh};
}

// The right operand: columns that are computed together, packed weights (Stored) or a map of the block's
// (Operand). Row k lies at data + k * stride. Packed weights have kPanel columns, or kWidePanel: see Product.
template <class Right>
struct Panel {
  const Right* data;
  std::int64_t stride = kPanel;

  Panel below(std::int64_t rows) const { return {data + rows * stride, stride}; }
};

// What sums are held to at last: an activation that is no more than that.
struct Clamp {
  bool any = false;
  float low = 0;
  float high = 0;

  Vec operator()(Vec v) const { return min(set1(high), max(set1(low), v)); }  // a NaN stays
};

// Where a tile goes: row m of the result at out + m * out_stride. Once the sum is complete: + bias (one value
// per column, in whole panels), the clamp, + residual. Any pointer but out may be null.
template <class Out>
struct Result {
  Out* out;
  std::int64_t out_stride;
  const Operand* bias = nullptr;
  const Out* residual = nullptr;
  std::int64_t residual_stride = 0;
  int columns = kPanel;          // columns to store
  const Operand* sum = nullptr;  // an earlier part of the same sum
  std::int64_t sum_stride = 0;
  const Clamp* clamp = nullptr;

  // The same from row m on.
  Result below(std::int64_t m) const {
    Result r = *this;
    r.out += m * out_stride;
    if (residual) r.residual += m * residual_stride;
    if (sum) r.sum += m * sum_stride;
    return r;
  }
};

// Steps of k between two prefetches of weights; or, by lane, without a branch between them and without
// prefetches (see depth.h).
#ifdef EFFV2_BY_LANE
constexpr int kRun = kPanel;
constexpr bool kFetchesAhead = false;
#else
constexpr int kRun = 16;
constexpr bool kFetchesAhead = true;
#endif
static_assert(kRun % kDepthGroup == 0 && kDepthBlock % kRun == 0, "steps of a product divide its pieces");

// Memory that is used after what is at hand: the start of what the next product reads.
struct Next {
  const void* data = nullptr;
  std::int64_t bytes = 0;
};

// Weights are fetched one piece of a panel ahead of their use.
template <class Right>
inline Next ahead_of(Panel<Right> b, int depth) {
  return {b.data, (depth < kDepthBlock ? depth : kDepthBlock) * b.stride * std::int64_t{sizeof(Right)}};
}

// Memory fetched little by little while other weights are in use: the rest of this panel, then the start of
// the next one.
struct Ahead {
  const char* begin;
  const char* end;
  Next next;
  int lines;  // per kRun steps

  void fetch() {
    if (begin >= end) {
      if (!next.data) return;
      begin = static_cast<const char*>(next.data);
      end = begin + next.bytes;
      next.data = nullptr;
    }
    for (int i = 0; i < lines; ++i, begin += kCacheLine) prefetch(begin);
  }
};

// During so many tiles: whoever came before has fetched the first piece of b.
template <class Right>
inline Ahead ahead_of_tiles(Panel<Right> b, int depth, int tiles, Next next) {
  const auto* const rest =
      reinterpret_cast<const char*>(b.below(depth < kDepthBlock ? depth : kDepthBlock).data);
  const auto* const end = reinterpret_cast<const char*>(b.below(depth).data);
  const std::int64_t runs = std::int64_t{tiles} * ((depth + kRun - 1) / kRun) * kCacheLine;
  const std::int64_t lines = (end - rest + next.bytes + runs - 1) / runs;
  return {rest, end, next, static_cast<int>(lines)};
}

// `tiles` tiles of so many rows and vectors from row m on, k from begin to end. last: the sum is complete.
template <class Right, class Out>
using RunTiles = void (*)(const Rows& a, int m, int tiles, Panel<Right> b, int begin, int end,
                          const Result<Out>& result, bool last, Ahead& ahead);

// Rows of sums in registers, by vectors.
constexpr int most_rows(int vectors) {
  if (vectors > kTileVectors) return kWideTileRows;
  return 2 * vectors > kTileVectors ? kTileRows : kNarrowTileRows;
}
constexpr int kMostTileRows = kTileRows > kNarrowTileRows ? kTileRows : kNarrowTileRows;

// By vectors and rows, each less one. Compiled once for a target, in gemm.cpp: they are most of its code.
template <class Right, class Out>
struct TileRuns {
  RunTiles<Right, Out> of[kTileVectors + 1][kMostTileRows];

  static const TileRuns table;
};

// Panels that one row is multiplied with side by side. A row alone waits for its weights, and several streams
// of them arrive sooner than one.
constexpr int kSideBySide = 4;

// One row times so many whole panels, each `panel_step` values behind the one before; result: of the first.
template <class Right, class Out>
using RunRow = void (*)(const Operand* row, Panel<Right> b, std::int64_t panel_step, int depth,
                        const Result<Out>& result);

// By panels, less one.
template <class Right, class Out>
struct RowRuns {
  RunRow<Right, Out> of[kSideBySide];

  static const RowRuns table;
};

template <int Vectors, class Right, class Out>
inline void tiles_of(int row_count, const Rows& a, int m, int tiles, Panel<Right> b, int begin, int end,
                     const Result<Out>& r, bool last, Ahead& ahead) {
  TileRuns<Right, Out>::table.of[Vectors - 1][row_count - 1](a, m, tiles, b, begin, end, r, last, ahead);
}

// A tile whose result cannot hold parts of a sum: they wait beside it.
template <int Vectors, class Right, class Out>
inline void rounded_tile(int row_count, const Rows& a, int m, Panel<Right> b, int depth, const Result<Out>& r,
                         Ahead& ahead) {
  alignas(64) Operand held[most_rows(Vectors) * Vectors * kLanes];
  const Rows rows{a.data + m * a.row_stride, a.row_stride, a.block, a.block_stride, a.fresh};
  const Result<Out> whole = r.below(m);
  Result<Operand> part{held, Vectors * kLanes};
  part.columns = Vectors * kLanes;
  part.sum = whole.sum;
  part.sum_stride = whole.sum_stride;
  if (part.sum) part.columns = r.columns;
  int begin = 0;
  for (; depth - begin > kDepthBlock; begin += kDepthBlock) {
    tiles_of<Vectors>(row_count, rows, 0, 1, b, begin, begin + kDepthBlock, part, false, ahead);
    part.sum = held;
    part.sum_stride = part.out_stride;
  }
  Result<Out> rest = whole;
  if (begin) {
    rest.sum = held;
    rest.sum_stride = part.out_stride;
  }
  tiles_of<Vectors>(row_count, rows, 0, 1, b, begin, depth, rest, true, ahead);
}

// The rows are divided evenly, so that no tile is left with too few rows to hide the latency of a
// multiply-add: 49 rows make 4 tiles of 6 and 5 of 5, not 8 of 6 and 1 of 1.
template <int Vectors, class Right, class Out>
inline void gemm_of(const Rows& a, int m0, int m1, Panel<Right> b, int depth, const Result<Out>& r,
                    Next next) {
  const int rows = m1 - m0;
  constexpr int kMost = most_rows(Vectors);
  const int tiles = (rows + kMost - 1) / kMost;
  if (tiles == 0) return;
  const int small = rows / tiles, larger = rows - small * tiles;  // `larger` tiles have one row more
  const int split = m0 + larger * (small + 1);
  Ahead ahead{};
  if constexpr (kFetchesAhead) ahead = ahead_of_tiles(b, depth, tiles, next);
  if constexpr (!std::is_same_v<Out, Operand>) {
    if (depth > kDepthBlock) {
      for (int m = m0; m < split; m += small + 1) {
        rounded_tile<Vectors>(small + 1, a, m, b, depth, r, ahead);
      }
      for (int m = split; m < m1; m += small) rounded_tile<Vectors>(small, a, m, b, depth, r, ahead);
      return;
    }
  }
  const Result<Out>* into = &r;
  Result<Out> onto;
  for (int begin = 0; begin < depth; begin += kDepthBlock) {
    const int end = depth - begin > kDepthBlock ? begin + kDepthBlock : depth;
    const bool last = end == depth;
    if (larger) tiles_of<Vectors>(small + 1, a, m0, larger, b, begin, end, *into, last, ahead);
    tiles_of<Vectors>(small, a, split, tiles - larger, b, begin, end, *into, last, ahead);
    if constexpr (std::is_same_v<Out, Operand>) {
      if (last || begin) continue;
      onto = r;
      onto.sum = r.out;
      onto.sum_stride = r.out_stride;
      into = &onto;
    }
  }
}

// Rows [m0, m1) times the columns of one panel; depth: rows of b.
template <class Right, class Out, int Vectors = kTileVectors + 1>
inline void gemm(const Rows& a, int m0, int m1, Panel<Right> b, int depth, const Result<Out>& r,
                 Next next = {}) {
  if constexpr (Vectors > 1) {
    if (r.columns <= (Vectors - 1) * kLanes) {
      return gemm<Right, Out, Vectors - 1>(a, m0, m1, b, depth, r, next);
    }
  }
  gemm_of<Vectors>(a, m0, m1, b, depth, r, next);
}

}  // namespace effv2::EFFV2_TARGET
