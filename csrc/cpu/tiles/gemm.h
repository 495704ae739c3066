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
#include "cpu/tiles/gelu.h"

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
};

inline Rows plain_rows(const float* data, std::int64_t row_stride, int depth) {
  return {data, row_stride, depth, 0};
}
// A map stored in panels, [panel][pixel][kPanel]: the rows are pixels.
inline Rows panel_rows(const float* data, std::int64_t pixels) {
  return {data, kPanel, kPanel, pixels * kPanel};
}

// Where a tile goes: row m of the result at out + m * out_stride; then, once the sum is complete,
// + bias (one value per column), + residual, and the activation. Either pointer may be null;
// residual may be out itself.
struct Result {
  float* out;
  std::int64_t out_stride;
  const float* bias = nullptr;
  const float* residual = nullptr;
  std::int64_t residual_stride = 0;
  int columns = kPanel;  // columns to store
  bool accumulate = false;  // add to what is in out: an earlier part of the same sum
};

enum class Activation { kNone, kGelu };

template <Activation A>
EFFV2_INLINE Vec activate(Vec v) {
  if constexpr (A == Activation::kGelu) {
    return gelu(v);
  } else {
    return v;
  }
}

template <Activation A, int Vectors>
EFFV2_INLINE void finish_row(Vec (&sum)[Vectors], const Result& r, int m, bool first, bool last) {
#pragma GCC unroll 4
  for (int v = 0; v < Vectors; ++v) {
    const int column = v * kLanes;
    const int count = r.columns - column;
    float* out = r.out + m * r.out_stride + column;
    Vec s = sum[v];
    if (__builtin_expect(count >= kLanes, 1)) {
      if (!first) s = add(s, load(out));
      if (last) {
        if (r.bias) s = add(s, load(r.bias + column));
        if (r.residual) s = add(s, load(r.residual + m * r.residual_stride + column));
        s = activate<A>(s);
      }
      store(out, s);
    } else if (count > 0) {
      if (!first) s = add(s, load_n(out, count));
      if (last) {
        if (r.bias) s = add(s, load(r.bias + column));
        if (r.residual) s = add(s, load_n(r.residual + m * r.residual_stride + column, count));
        s = activate<A>(s);
      }
      store_n(out, s, count);
    }
  }
}

// One tile: RowCount rows from row m on, k from begin to end.
template <Activation A, int RowCount, int Vectors>
inline __attribute__((noinline)) void tile(const Rows& a, int m, const float* b, std::int64_t b_stride, int begin, int end,
                 const Result& r, bool last) {
  Vec sum[RowCount][Vectors];
#pragma GCC unroll 16
  for (int i = 0; i < RowCount; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) sum[i][v] = zero();
  }
  const float* b_row = b + begin * b_stride;
  const std::int64_t stride = a.row_stride;
  int block = begin / a.block;
  int offset = begin - block * a.block;
  for (int left = end - begin; left > 0; ++block, offset = 0) {
    const float* p = a.data + m * stride + block * a.block_stride + offset;
    const int count = left < a.block - offset ? left : a.block - offset;
    left -= count;
    for (int k = 0; k < count; ++k, ++p, b_row += b_stride) {
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
  }
#pragma GCC unroll 16
  for (int i = 0; i < RowCount; ++i) {
    finish_row<A>(sum[i], r, m + i, begin == 0 && !r.accumulate, last);
  }
}

template <Activation A, int Vectors, int RowCount = kTileRows>
EFFV2_INLINE void tile_of(int row_count, const Rows& a, int m, const float* b, std::int64_t b_stride,
                          int begin, int end, const Result& r, bool last) {
  if constexpr (RowCount > 0) {
    if (row_count == RowCount) {
      tile<A, RowCount, Vectors>(a, m, b, b_stride, begin, end, r, last);
    } else {
      tile_of<A, Vectors, RowCount - 1>(row_count, a, m, b, b_stride, begin, end, r, last);
    }
  }
}

// Rows [m0, m1) times one panel of b (depth rows of b_stride floats, kPanel for packed weights).
// The rows are divided evenly, so that no tile is left with too few rows to hide the latency of a
// multiply-add: 49 rows make 9 tiles of 5 or 6, not 8 of 6 and 1 of 1.
template <Activation A = Activation::kNone>
void gemm(const Rows& a, int m0, int m1, const float* b, std::int64_t b_stride, int depth,
          const Result& r) {
  const int rows = m1 - m0;
  const int tiles = (rows + kTileRows - 1) / kTileRows;
  for (int begin = 0; begin < depth; begin += kDepthBlock) {
    const int end = depth - begin > kDepthBlock ? begin + kDepthBlock : depth;
    const bool last = end == depth;
    for (int t = 0, m = m0; t < tiles; ++t) {
      const int next = m0 + static_cast<int>(static_cast<std::int64_t>(rows) * (t + 1) / tiles);
      if (r.columns > kLanes) {
        tile_of<A, kTileVectors>(next - m, a, m, b, b_stride, begin, end, r, last);
      } else {
        tile_of<A, 1>(next - m, a, m, b, b_stride, begin, end, r, last);
      }
      m = next;
    }
  }
}

}  // namespace effv2::EFFV2_ISA
