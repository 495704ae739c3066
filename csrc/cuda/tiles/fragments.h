// Products of a warp, of factors in shared memory: 16 rows by 32 columns at a time.
//
// Rows of both factors lie kPad values further apart than they are long, so that eight of them meet in no
// bank. Columns of a product are those of the right factor's rows, which are packed so that a lane gets eight
// columns that lie beside each other: of each 32, row 8 j + 2 t + i holds column 8 t + 2 j + i, since lane t
// of four gets columns 2 t + i of each product j of eight columns.
#pragma once

#include "cuda/device.h"

namespace effv2::cuda {

constexpr int kWarp = 32;
constexpr int kPad = 8;
constexpr int kRows = 16, kColumns = 32, kDepth = 16;  // of a product

EFFV2_DEVICE int lane() { return thread() % kWarp; }
EFFV2_DEVICE int warp() { return thread() / kWarp; }

// The two rows of a product that this lane has sums of, and the first of its eight columns.
EFFV2_DEVICE int first_row_of_lane() { return lane() / 4; }
EFFV2_DEVICE int first_column_of_lane() { return lane() % 4 * 8; }

struct Sums {
  float v[4][4];

  EFFV2_DEVICE void clear() {
    EFFV2_UNROLL
    for (int j = 0; j < 4; ++j) {
      EFFV2_UNROLL
      for (int i = 0; i < 4; ++i) v[j][i] = 0;
    }
  }
  // Columns first_column_of_lane() to + 7 of row first_row_of_lane() + 8 half.
  EFFV2_DEVICE void get(float (&row)[8], int half) const {
    EFFV2_UNROLL
    for (int j = 0; j < 4; ++j) {
      row[2 * j] = v[j][2 * half];
      row[2 * j + 1] = v[j][2 * half + 1];
    }
  }
};

// 16 x 16 values of the left factor. tile: of the first row at the first of the 16.
template <class T>
EFFV2_DEVICE void load_left(Pair (&a)[4], const T* tile, int stride) {
  load_matrices<false>(a, tile + (lane() % 16) * stride + lane() / 16 * 8);
}
// 16 rows of the right factor, of 16 values each: two products of eight columns.
template <class T>
EFFV2_DEVICE void load_right(Pair (&b)[4], const T* tile, int stride) {
  load_matrices<false>(b, tile + (lane() / 16 * 8 + lane() % 8) * stride + lane() / 8 % 2 * 8);
}
// sums += a b for 32 rows of the right factor.
template <class T>
EFFV2_DEVICE void multiply(Sums& sums, const Pair (&a)[4], const T* right, int stride) {
  EFFV2_UNROLL
  for (int j = 0; j < 4; j += 2) {
    Pair b[4];
    load_right(b, right + 8 * j * stride, stride);
    mma<T>(sums.v[j], a, b[0], b[1]);
    mma<T>(sums.v[j + 1], a, b[2], b[3]);
  }
}

}  // namespace effv2::cuda
