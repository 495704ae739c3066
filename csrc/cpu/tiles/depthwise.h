// 3x3 depthwise convolution with padding 1, one row of output at a time.
//
// Weights are packed [panel][10][kPanel]: nine taps, row by row, then the bias.
#pragma once

#include <cstdint>

#include "cpu/simd/simd.h"

namespace effv2::EFFV2_ISA {

inline constexpr int kDepthwiseTaps = 10;

// One row of a map: pixel x lies at data + x * pixel_stride. The rows above, at and below the centre
// of the window; a row outside the map is null.
struct Window {
  const float* rows[3];
  std::int64_t pixel_stride;
  int width;
};

template <int Stride, unsigned RowMask, bool Whole>
EFFV2_INLINE void depthwise_vector(const Window& in, const float* taps, float* out,
                                   std::int64_t out_stride, int out_width, int count) {
  Vec w[9];
#pragma GCC unroll 9
  for (int i = 0; i < 9; ++i) w[i] = load(taps + i * kPanel);
  const Vec bias = load(taps + 9 * kPanel);

  const auto pixel = [&](int x, bool left, bool right) {
    Vec sum = bias;
#pragma GCC unroll 3
    for (int row = 0; row < 3; ++row) {
      if (!((RowMask >> row) & 1u)) continue;
      const float* p = in.rows[row] + static_cast<std::int64_t>(x) * Stride * in.pixel_stride;
      const auto at = [&](std::int64_t dx) {
        return Whole ? load(p + dx * in.pixel_stride) : load_n(p + dx * in.pixel_stride, count);
      };
      if (left) sum = fma(at(-1), w[row * 3], sum);
      sum = fma(at(0), w[row * 3 + 1], sum);
      if (right) sum = fma(at(1), w[row * 3 + 2], sum);
    }
    if (Whole) {
      store(out + x * out_stride, sum);
    } else {
      store_n(out + x * out_stride, sum, count);
    }
  };

  // The window of x spans columns x * Stride - 1 ... x * Stride + 1.
  const int inner_end = in.width >= 2 ? (in.width - 2) / Stride + 1 : 0;  // first x without a right neighbour
  pixel(0, false, in.width > 1);
  int x = 1;
  for (; x < inner_end && x < out_width; ++x) pixel(x, true, true);
  for (; x < out_width; ++x) pixel(x, true, false);
}

template <int Stride, bool Whole>
EFFV2_INLINE void depthwise_masked(const Window& in, const float* taps, float* out, std::int64_t out_stride,
                                   int out_width, int count) {
  if (in.rows[0] && in.rows[2]) {
    depthwise_vector<Stride, 7, Whole>(in, taps, out, out_stride, out_width, count);
  } else if (in.rows[0]) {
    depthwise_vector<Stride, 3, Whole>(in, taps, out, out_stride, out_width, count);
  } else if (in.rows[2]) {
    depthwise_vector<Stride, 6, Whole>(in, taps, out, out_stride, out_width, count);
  } else {
    depthwise_vector<Stride, 2, Whole>(in, taps, out, out_stride, out_width, count);
  }
}

// One panel of one output row; channels: how many of the panel's channels exist in memory.
template <int Stride>
void depthwise_row(Window in, const float* taps, float* out, std::int64_t out_stride, int out_width,
                   int channels) {
  for (int c = 0; c < channels; c += kLanes) {
    if (channels - c >= kLanes) {
      depthwise_masked<Stride, true>(in, taps + c, out + c, out_stride, out_width, kLanes);
    } else {
      depthwise_masked<Stride, false>(in, taps + c, out + c, out_stride, out_width, channels - c);
    }
    for (const float*& row : in.rows) {
      if (row) row += kLanes;
    }
  }
}

// A window over a whole map in memory: row y centred.
inline Window window_at(const float* map, std::int64_t pixel_stride, int height, int width, int y) {
  const std::int64_t pitch = pixel_stride * width;
  const float* centre = map + y * pitch;
  return {{y > 0 ? centre - pitch : nullptr, centre, y + 1 < height ? centre + pitch : nullptr},
          pixel_stride,
          width};
}

}  // namespace effv2::EFFV2_ISA
