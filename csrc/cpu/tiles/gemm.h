// Matrix product of rows of activations with packed weights: out[m, n] = sum_k a[m, k] * b[k, n].
//
// A register tile holds kTileRows x kTileVectors sums; one row of b is loaded per step of k and every
// element of a is broadcast. K is cut into pieces of kDepthBlock: each piece is summed from zero and
// the pieces are added in order, which bounds the rounding error and keeps a piece of b in the L1
// cache. A sum therefore depends on K alone, never on how rows and columns are divided among tiles or
// threads; that is what makes results bitwise reproducible.
#pragma once

#include <cstdint>

#include "cpu/simd/simd.h"

namespace effv2::EFFV2_ISA {

inline constexpr int kDepthBlock = 256;

// The left operand. Element (m, k) lies at
//   data + m * row_stride + (k / block) * block_stride + k % block      (all in floats).
// Plain rows of K floats have block == K; rows gathered from 3x3 windows or panels have shorter blocks.
struct Rows {
  const float* data;
  std::int64_t row_stride;
  int block;
  std::int64_t block_stride;
  bool fresh = false;  // just written, by other threads as well: fetched from their caches a tile ahead
};

inline Rows plain_rows(const float* data, std::int64_t row_stride, int depth, bool fresh = false) {
  return {data, row_stride, depth, 0, fresh};
}
// A map stored in panels, [panel][pixel][kPanel]: the rows are pixels.
inline Rows panel_rows(const float* data, std::int64_t pixels, bool fresh = false) {
  return {data, kPanel, kPanel, pixels * kPanel, fresh};
}

// The right operand: columns that are computed together. Row k lies at data + k * stride. Packed weights have
// kPanel columns, or kWidePanel: see PackedMatrix.
struct Panel {
  const float* data;
  std::int64_t stride = kPanel;

  Panel below(std::int64_t rows) const { return {data + rows * stride, stride}; }
};

// Where a tile goes: row m of the result at out + m * out_stride; then, once the sum is complete,
// + bias (one value per column, in whole panels) and + residual. Either pointer may be null.
struct Result {
  float* out;
  std::int64_t out_stride;
  const float* bias = nullptr;
  const float* residual = nullptr;
  std::int64_t residual_stride = 0;
  int columns = kPanel;     // columns to store
  bool accumulate = false;  // add to what is in out: an earlier part of the same sum
};

// Adds what belongs to a tile of sums and stores it. Whole: all of its columns exist.
template <int RowCount, int Vectors, bool Whole>
EFFV2_INLINE void finish(Vec (&sum)[RowCount][Vectors], const Result& r, int m, bool first, bool last) {
  const int tail = r.columns - (Vectors - 1) * kLanes;  // columns of the last vector
  const auto get = [&](const float* p, int v) {
    return Whole || v + 1 < Vectors ? load(p + v * kLanes) : load_n(p + v * kLanes, tail);
  };
  if (!first) {
#pragma GCC unroll 16
    for (int i = 0; i < RowCount; ++i) {
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) sum[i][v] = add(sum[i][v], get(r.out + (m + i) * r.out_stride, v));
    }
  }
  if (last && r.bias) {
#pragma GCC unroll 16
    for (int i = 0; i < RowCount; ++i) {
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) sum[i][v] = add(sum[i][v], load(r.bias + v * kLanes));
    }
  }
  if (last && r.residual) {
#pragma GCC unroll 16
    for (int i = 0; i < RowCount; ++i) {
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) {
        sum[i][v] = add(sum[i][v], get(r.residual + (m + i) * r.residual_stride, v));
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < RowCount; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) {
      float* out = r.out + (m + i) * r.out_stride + v * kLanes;
      if (Whole || v + 1 < Vectors) {
        store(out, sum[i][v]);
      } else {
        store_n(out, sum[i][v], tail);
      }
    }
  }
}

constexpr int kRun = 16;  // steps of k between two prefetches

// Weights that are used after those at hand: the start of what the next product reads.
struct Next {
  const float* data = nullptr;
  std::int64_t floats = 0;
};

// Weights are fetched one piece of a panel ahead of their use.
inline Next ahead_of(Panel b, int depth) {
  return {b.data, (depth < kDepthBlock ? depth : kDepthBlock) * b.stride};
}

// Memory fetched little by little while other weights are in use: the rest of this panel, then the start of
// the next one.
struct Ahead {
  const float* begin;
  const float* end;
  Next next;
  int lines;  // per kRun steps

  void fetch() {
    if (begin >= end) {
      if (!next.data) return;
      begin = next.data;
      end = next.data + next.floats;
      next.data = nullptr;
    }
    for (int i = 0; i < lines; ++i, begin += kCacheLine) prefetch(begin);
  }
};

// `tiles` tiles of RowCount rows from row m on, k from begin to end.
template <int RowCount, int Vectors>
__attribute__((noinline)) void run_tiles(const Rows& a, int m, int tiles, Panel b, int begin, int end,
                                         const Result& result, bool last, Ahead& ahead) {
  const Result r = result;
  Ahead soon = ahead;
  const std::int64_t stride = a.row_stride;
  const bool whole = r.columns >= Vectors * kLanes;
  const bool first = begin == 0 && !r.accumulate;
  const int first_block = begin ? begin / a.block : 0;
  const int first_offset = begin - first_block * a.block;
  const float* const start = a.data + first_block * a.block_stride + first_offset;
  const float* const first_row_of_b = b.below(begin).data;
  const std::int64_t b_stride = b.stride;

  for (; tiles > 0; --tiles, m += RowCount) {
    Vec sum[RowCount][Vectors];
#pragma GCC unroll 16
    for (int i = 0; i < RowCount; ++i) {
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) sum[i][v] = zero();
    }
    const float* b_row = first_row_of_b;
    const float* p = start + m * stride;
    int block_left = a.block - first_offset;
    for (int left = end - begin; left > 0;) {
      int run = left < kRun ? left : kRun;
      if (run > block_left) run = block_left;
      left -= run;
      block_left -= run;
      soon.fetch();
      if (a.fresh) {
#pragma GCC unroll 16
        for (int i = 0; i < RowCount; ++i) prefetch(p + (RowCount + i) * stride);
      }
      for (int k = 0; k < run; ++k, ++p, b_row += b_stride) {
        Vec weights[Vectors];
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) weights[v] = load(b_row + v * kLanes);
#pragma GCC unroll 16
        for (int i = 0; i < RowCount; ++i) {
          const Vec x = broadcast(p + i * stride);
#pragma GCC unroll 4
          for (int v = 0; v < Vectors; ++v) sum[i][v] = fma(x, weights[v], sum[i][v]);
        }
      }
      if (block_left == 0) {
        p += a.block_stride - a.block;
        block_left = a.block;
      }
    }
    if (whole) {
      finish<RowCount, Vectors, true>(sum, r, m, first, last);
    } else {
      finish<RowCount, Vectors, false>(sum, r, m, first, last);
    }
  }
  ahead = soon;
}

template <int Vectors, int RowCount>
EFFV2_INLINE void tiles_of(int row_count, const Rows& a, int m, int tiles, Panel b, int begin, int end,
                           const Result& r, bool last, Ahead& ahead) {
  if constexpr (RowCount > 0) {
    if (row_count == RowCount) {
      run_tiles<RowCount, Vectors>(a, m, tiles, b, begin, end, r, last, ahead);
    } else {
      tiles_of<Vectors, RowCount - 1>(row_count, a, m, tiles, b, begin, end, r, last, ahead);
    }
  }
}

// The rows are divided evenly, so that no tile is left with too few rows to hide the latency of a
// multiply-add: 49 rows make 4 tiles of 6 and 5 of 5, not 8 of 6 and 1 of 1.
template <int Vectors, int MostRows>
inline void gemm_of(const Rows& a, int m0, int m1, Panel b, int depth, const Result& r, Next next) {
  const int rows = m1 - m0;
  const int tiles = (rows + MostRows - 1) / MostRows;
  if (tiles == 0) return;
  const int small = rows / tiles, larger = rows - small * tiles;  // `larger` tiles have one row more
  const int split = m0 + larger * (small + 1);
  // Whoever came before has fetched the first piece of b.
  const Panel rest = b.below(depth < kDepthBlock ? depth : kDepthBlock);
  const float* const b_end = b.below(depth).data;
  const std::int64_t runs = std::int64_t{tiles} * ((depth + kRun - 1) / kRun) * kCacheLine;
  const std::int64_t lines = (b_end - rest.data + next.floats + runs - 1) / runs;
  Ahead ahead{rest.data, b_end, next, static_cast<int>(lines)};
  for (int begin = 0; begin < depth; begin += kDepthBlock) {
    const int end = depth - begin > kDepthBlock ? begin + kDepthBlock : depth;
    const bool last = end == depth;
    if (larger) tiles_of<Vectors, MostRows>(small + 1, a, m0, larger, b, begin, end, r, last, ahead);
    tiles_of<Vectors, MostRows>(small, a, split, tiles - larger, b, begin, end, r, last, ahead);
  }
}

// Rows [m0, m1) times the columns of one panel; depth: rows of b.
inline void gemm(const Rows& a, int m0, int m1, Panel b, int depth, const Result& r, Next next = {}) {
  if (r.columns > kPanel) {
    gemm_of<kTileVectors + 1, kWideTileRows>(a, m0, m1, b, depth, r, next);
  } else if (r.columns > kLanes) {
    gemm_of<kTileVectors, kTileRows>(a, m0, m1, b, depth, r, next);
  } else {
    gemm_of<1, kTileRows>(a, m0, m1, b, depth, r, next);
  }
}

}  // namespace effv2::EFFV2_ISA
