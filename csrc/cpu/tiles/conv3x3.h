// Full 3x3 convolution with stride 2 and padding 1 as a matrix product.
//
// The input rows are first copied into a padded strip, [row][width + 2][channels], so that the window
// of every output pixel is three runs of 3 * channels floats.
#pragma once

#include <cstring>

#include "cpu/simd/simd.h"
#include "cpu/tiles/gemm.h"
#include "cpu/tiles/pack.h"
#include "engine/block.h"

namespace effv2::EFFV2_ISA {

inline std::int64_t padded_pitch(int width, int channels) {
  return static_cast<std::int64_t>(width + 2) * channels;
}

// Copies rows [begin, end) of the map (begin may be -1 and end height + 1: zero rows) to the strip.
inline void pad_rows(const MapView& in, int height, int width, int channels, int begin, int end,
                     float* strip) {
  const std::int64_t pitch = padded_pitch(width, channels);
  for (int y = begin; y < end; ++y, strip += pitch) {
    if (y < 0 || y >= height) {
      std::memset(strip, 0, pitch * sizeof(float));
      continue;
    }
    std::memset(strip, 0, channels * sizeof(float));
    std::memset(strip + pitch - channels, 0, channels * sizeof(float));
    float* out = strip + channels;
    const float* row = in.data + y * in.row_stride;
    if (in.channel_stride == 1 && in.pixel_stride == channels) {
      std::memcpy(out, row, static_cast<std::size_t>(width) * channels * sizeof(float));
    } else if (channels == 3) {
      const float *red = row, *green = row + in.channel_stride, *blue = row + 2 * in.channel_stride;
      for (int x = 0; x < width; ++x) {
        out[3 * x] = red[x * in.pixel_stride];
        out[3 * x + 1] = green[x * in.pixel_stride];
        out[3 * x + 2] = blue[x * in.pixel_stride];
      }
    } else {
      for (int x = 0; x < width; ++x) {
        for (int c = 0; c < channels; ++c) {
          out[x * channels + c] = row[x * in.pixel_stride + c * in.channel_stride];
        }
      }
    }
  }
}

// One output row; strip points at the padded row above the window's centre. conv: see pack_conv3x3();
// out: [out_width][outputs].
inline void conv3x3_row(const float* strip, int width, int channels, const PackedMatrix& conv, float* out,
                        int out_width) {
  const Rows rows{strip, 2 * static_cast<std::int64_t>(channels), 3 * channels,
                  padded_pitch(width, channels)};
  for (int p = 0; p < conv.panels(); ++p) {
    Result r{out + p * kPanel, conv.outputs(), conv.panel_bias(p)};
    r.columns = conv.columns(p);
    gemm(rows, 0, out_width, conv.panel(p), conv.depth(), r, conv.ahead(p + 1));
  }
}

// The windows of output rows [begin, end), [pixel][3][3 * channels], zero outside the map. Takes nine
// times the memory of the strip, but makes one matrix of the whole map: for narrow maps, whose rows are
// too short for whole tiles.
inline void gather_patches(const float* map, Map in, int begin, int end, float* patches) {
  const int width = (in.width + 1) / 2;
  const std::int64_t pixel = in.channels, run = 3 * pixel;
  patches += std::int64_t{begin} * width * 3 * run;
  for (int row = begin; row < end; ++row) {
    for (int column = 0; column < width; ++column) {
      const int first = 2 * column - 1;
      const int skip = first < 0 ? 1 : 0;
      const int count = (first + 3 > in.width ? in.width - first : 3) - skip;
      for (int y = 2 * row - 1; y < 2 * row + 2; ++y, patches += run) {
        if (y < 0 || y >= in.height) {
          std::memset(patches, 0, run * sizeof(float));
          continue;
        }
        std::memset(patches, 0, skip * pixel * sizeof(float));
        std::memcpy(patches + skip * pixel, map + (std::int64_t{y} * in.width + first + skip) * pixel,
                    count * pixel * sizeof(float));
        std::memset(patches + (skip + count) * pixel, 0, (3 - skip - count) * pixel * sizeof(float));
      }
    }
  }
}

}  // namespace effv2::EFFV2_ISA
