// 3x3 convolutions with stride 2 of an image of three channels, whatever its strides: of a patch of it in
// shared memory, where the nine values of a window's row lie beside each other. A tenth makes a row of whole
// pairs, so that a lane loads its part of the left factor from the patch itself; the weights have a zero
// there.
#pragma once

#include "cuda/address.h"
#include "cuda/tiles/fragments.h"
#include "cuda/vector.h"

namespace effv2::cuda {

struct Image {
  static constexpr int kChannels = 3;

  int images, height, width;
  long long image_stride, channel_stride, row_stride, column_stride;  // in values
  Address x;

  template <class V>
  void visit(V& v) {
    v("images", images), v("height", height), v("width", width);
    v("image_stride", image_stride), v("channel_stride", channel_stride), v("row_stride", row_stride);
    v("column_stride", column_stride), v("x", x);
  }
};

// The patch under the windows of rows x columns outputs.
struct Patch {
  int rows, columns;

  EFFV2_ANYWHERE int outputs() const { return rows * columns; }
  EFFV2_ANYWHERE int height() const { return 2 * rows + 1; }
  EFFV2_ANYWHERE int width() const { return 2 * columns + 1; }
  EFFV2_ANYWHERE int stride() const { return round_up(Image::kChannels * width() + 1, 2); }
  EFFV2_ANYWHERE int values() const { return height() * stride(); }
};

template <class T, int Warps>
struct ImageConvolution {
  static constexpr int kThreads = kWarp * Warps;
  static constexpr int kWeights = 32, kStride = kWeights + kPad;  // of an output
  static constexpr int kInRow = 10, kPairsInRow = kInRow / 2;     // of a window, with the zero

  // Channels innermost, beginning with pixel (top, left); zeros outside of the image.
  EFFV2_DEVICE static void load_patch(const Image& image, const Buffers& buffers, int number, int top,
                                      int left, const Patch& patch, T* to) {
    const T* const x = at<T>(buffers, image.x) + number * image.image_stride;
    const int row_values = patch.width() * Image::kChannels;
    EFFV2_ROLL
    for (int i = thread(); i < patch.values(); i += kThreads) {
      const int row = i / patch.stride(), place = i % patch.stride();
      // Neighbours in memory are neighbours among the threads: channels of a pixel, or pixels of a channel.
      const bool by_pixel = image.channel_stride == 1;
      const int channel = by_pixel ? place % Image::kChannels : place / patch.width();
      const int column = by_pixel ? place / Image::kChannels : place % patch.width();
      const int y = top + row, x_at = left + column;
      T value = from_float<T>(0);
      if (place < row_values && y >= 0 && y < image.height && x_at >= 0 && x_at < image.width) {
        value =
            load<T>(x + channel * image.channel_stride + y * image.row_stride + x_at * image.column_stride);
      }
      store(to + row * patch.stride() + (place < row_values ? column * Image::kChannels + channel : place),
            value);
    }
  }

  // weights: as a product's w, of kWeights each. write(output of the patch, number of 32 channels, sums,
  // half).
  template <class Write>
  EFFV2_DEVICE static void convolve(const Patch& patch, const T* values, const T* weights, int channels,
                                    Write&& write) {
    int apart[4];  // from a window's first value to the pairs that this lane has of the left factor
    EFFV2_UNROLL
    for (int i = 0; i < 4; ++i) {
      const int pair = 4 * i + lane() % 4;
      apart[i] = pair < 3 * kPairsInRow ? pair / kPairsInRow * patch.stride() + pair % kPairsInRow * 2 : -1;
    }
    for (int m = warp(); m < blocks_of(patch.outputs(), kRows); m += Warps) {
      Pair a[2][4];
      EFFV2_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int output = m * kRows + first_row_of_lane() + 8 * half;
        const int row = output / patch.columns, column = output % patch.columns;
        const T* const corner = values + 2 * row * patch.stride() + 2 * column * Image::kChannels;
        EFFV2_UNROLL
        for (int i = 0; i < 4; ++i) {
          const bool there = apart[i] >= 0 && output < patch.outputs();
          a[i / 2][i % 2 * 2 + half] = there ? load<Pair>(corner + apart[i]) : 0;
        }
      }
      for (int n = 0; n < blocks_of(channels, kColumns); ++n) {
        Sums sums;
        sums.clear();
        EFFV2_UNROLL
        for (int k = 0; k < 2; ++k) {
          multiply<T>(sums, a[k], weights + n * kColumns * kStride + k * kDepth, kStride);
        }
        EFFV2_UNROLL
        for (int half = 0; half < 2; ++half) {
          const int output = m * kRows + first_row_of_lane() + 8 * half;
          if (output < patch.outputs()) write(output, n, sums, half);
        }
      }
    }
  }
};

}  // namespace effv2::cuda
