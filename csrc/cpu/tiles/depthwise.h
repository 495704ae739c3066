// 3x3 depthwise convolution with padding 1.
//
// Weights are packed [panel][10][kPanel]: nine taps, row by row, then the bias.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cpu/simd/simd.h"

namespace effv2::EFFV2_ISA {

inline constexpr int kDepthwiseTaps = 10;

// Fetches a panel's weights before they are needed.
inline void prefetch_taps(const float* taps) {
  for (int i = 0; i < kDepthwiseTaps * kPanel; i += kCacheLine) prefetch(taps + i);
}

// Which of the three rows of a window exist: bit r for row r.
template <unsigned Rows>
struct RowMask {
  static constexpr unsigned kRows = Rows;
};

// Rows of an input map, top to bottom. Row y lies at row(y), its pixel x at row(y) + x * pixel_stride;
// the first row (-1) and the last (count) of the range that row() accepts may be null: outside the map.
struct InputRows {
  const float* const* rows;  // rows[0] is row -1
  std::int64_t pixel_stride;
  int width;
};

// Output rows [0, count) of one vector of channels; row y is centred on input row y * Stride. The nine
// taps stay in registers for all rows.
template <int Stride, bool Whole>
EFFV2_INLINE void depthwise_vector(const InputRows& in, int channel, const float* taps, float* out,
                                   std::int64_t out_pixel_stride, std::int64_t out_row_stride, int out_width,
                                   int count, int channels) {
  Vec w[9];
#pragma GCC unroll 9
  for (int i = 0; i < 9; ++i) w[i] = load(taps + i * kPanel);
  const Vec bias = load(taps + 9 * kPanel);
  const std::int64_t step = in.pixel_stride;

  for (int y = 0; y < count; ++y, out += out_row_stride) {
    const float* const* rows = in.rows + y * Stride;
    const auto pixels = [&](auto mask) {
      constexpr unsigned kRows = decltype(mask)::kRows;
      const auto pixel = [&](int x, bool left, bool right) {
        Vec sum = bias;
#pragma GCC unroll 3
        for (int row = 0; row < 3; ++row) {
          if (!((kRows >> row) & 1u)) continue;
          const float* p = rows[row] + channel + static_cast<std::int64_t>(x) * Stride * step;
          const auto at = [&](std::int64_t offset) {
            return Whole ? load(p + offset) : load_n(p + offset, channels);
          };
          if (left) sum = fma(at(-step), w[row * 3], sum);
          sum = fma(at(0), w[row * 3 + 1], sum);
          if (right) sum = fma(at(step), w[row * 3 + 2], sum);
        }
        if (Whole) {
          store(out + x * out_pixel_stride, sum);
        } else {
          store_n(out + x * out_pixel_stride, sum, channels);
        }
      };
      // kTogether neighbours share what they read, and their sums are independent of each other.
      const auto neighbours = [&](int x, auto left, auto right) {
        constexpr int kFirst = decltype(left)::value ? -1 : 0;
        constexpr int kEnd = kTogether + (decltype(right)::value ? 1 : 0);
        Vec sum[kTogether];
#pragma GCC unroll 8
        for (int i = 0; i < kTogether; ++i) sum[i] = bias;
#pragma GCC unroll 3
        for (int row = 0; row < 3; ++row) {
          if (!((kRows >> row) & 1u)) continue;
          const float* p = rows[row] + channel + static_cast<std::int64_t>(x) * step;
#pragma GCC unroll 16
          for (int j = kFirst; j < kEnd; ++j) {
            Vec value = load(p + j * step);
            keep(value);
#pragma GCC unroll 8
            for (int i = 0; i < kTogether; ++i) {
              const int tap = j - i + 1;
              if (tap >= 0 && tap < 3) sum[i] = fma(value, w[row * 3 + tap], sum[i]);
            }
          }
        }
#pragma GCC unroll 8
        for (int i = 0; i < kTogether; ++i) store(out + (x + i) * out_pixel_stride, sum[i]);
      };
      constexpr std::true_type kYes;
      constexpr std::false_type kNo;
      int x = 0;
      if (Stride == 1 && Whole && out_width == kTogether) {
        neighbours(0, kNo, kNo);
        x = kTogether;
      } else if (Stride == 1 && Whole && out_width > kTogether) {
        neighbours(0, kNo, kYes);
        for (x = kTogether; x + kTogether < out_width; x += kTogether) neighbours(x, kYes, kYes);
        if (2 * (out_width - x) > kTogether) {  // worth a group, though it computes some pixels again
          neighbours(out_width - kTogether, kYes, kNo);
          x = out_width;
        }
      }
      for (; x < out_width; ++x) pixel(x, x > 0, x * Stride + 1 < in.width);
    };
    if (rows[0] && rows[2]) {
      pixels(RowMask<7>{});
    } else if (rows[0]) {
      pixels(RowMask<3>{});
    } else if (rows[2]) {
      pixels(RowMask<6>{});
    } else {
      pixels(RowMask<2>{});
    }
  }
}

// `count` output rows of one panel; channels: how many of the panel's channels exist in memory.
template <int Stride>
inline void depthwise(const InputRows& in, const float* taps, float* out, std::int64_t out_pixel_stride,
                      int out_width, int count, int channels) {
  const std::int64_t out_row_stride = out_pixel_stride * out_width;
  for (int c = 0; c < channels; c += kLanes) {
    if (channels - c >= kLanes) {
      depthwise_vector<Stride, true>(in, c, taps + c, out + c, out_pixel_stride, out_row_stride, out_width,
                                     count, kLanes);
    } else {
      depthwise_vector<Stride, false>(in, c, taps + c, out + c, out_pixel_stride, out_row_stride, out_width,
                                      count, channels - c);
    }
  }
}

// All output rows of one panel of a map that lies whole in memory.
template <int Stride>
void depthwise_map(const float* map, int height, int width, std::int64_t pixel_stride, const float* taps,
                   float* out, std::int64_t out_pixel_stride, int channels) {
  // A few rows at a time: the list of rows lives on the stack.
  constexpr int kGroup = 16;
  const int out_height = (height + Stride - 1) / Stride, out_width = (width + Stride - 1) / Stride;
  for (int begin = 0; begin < out_height; begin += kGroup) {
    const int count = out_height - begin < kGroup ? out_height - begin : kGroup;
    const float* rows[kGroup * Stride + 2];
    for (int i = 0; i < (count - 1) * Stride + 3; ++i) {
      const int y = begin * Stride + i - 1;
      rows[i] = y >= 0 && y < height ? map + y * pixel_stride * width : nullptr;
    }
    depthwise<Stride>({rows, pixel_stride, width}, taps, out + begin * out_pixel_stride * out_width,
                      out_pixel_stride, out_width, count, channels);
  }
}

}  // namespace effv2::EFFV2_ISA
