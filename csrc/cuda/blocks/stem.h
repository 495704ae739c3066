// The stem, f(conv2(f(conv1(image)))), both 3x3 with stride 2: a tile of pixels for each block of threads.
// What lies between the two exists in shared memory alone.
#pragma once

#include "cuda/address.h"
#include "cuda/reach.h"
#include "cuda/tiles/activation.h"
#include "cuda/tiles/fragments.h"
#include "cuda/tiles/output.h"
#include "cuda/vector.h"

namespace effv2::cuda {

struct Stem {
  static constexpr int kChannels = 3;  // of an image

  int images, height, width;
  int mid, mid_height, mid_width;  // between the convolutions
  int outputs, y_height, y_width;
  Activation activation;
  int tile_height, tile_width;                                        // pixels of y
  long long image_stride, channel_stride, row_stride, column_stride;  // of x, in values
  Address x;
  // As a product's w, of depth 32: for each row of the window the nine values that lie beside each other, and
  // a zero, so that a pair of values is in one row.
  Address conv1, conv1_bias;
  Address conv2, conv2_bias;  // as a product's w, of 9 taps of `mid` rounded up to 16 each
  Address y;

  EFFV2_ANYWHERE int tile_rows() const { return blocks_of(y_height, tile_height); }
  EFFV2_ANYWHERE int tile_columns() const { return blocks_of(y_width, tile_width); }
  EFFV2_ANYWHERE int pixels() const { return tile_height * tile_width; }
  EFFV2_ANYWHERE int row_tiles() const { return blocks_of(pixels(), kRows); }
  EFFV2_ANYWHERE int between_width() const { return 2 * tile_width + 1; }
  EFFV2_ANYWHERE int between() const { return (2 * tile_height + 1) * between_width(); }
  EFFV2_ANYWHERE int depth() const { return round_up(mid, kDepth); }
  EFFV2_ANYWHERE int patch_height() const { return 4 * tile_height + 3; }
  EFFV2_ANYWHERE int patch_width() const { return 4 * tile_width + 3; }
  EFFV2_ANYWHERE int patch_stride() const { return round_up(kChannels * patch_width() + 1, 2); }

  template <class V>
  void visit(V& v) {
    v("images", images), v("height", height), v("width", width);
    v("mid", mid), v("mid_height", mid_height), v("mid_width", mid_width);
    v("outputs", outputs), v("y_height", y_height), v("y_width", y_width), v("activation", activation);
    v("tile_height", tile_height), v("tile_width", tile_width);
    v("image_stride", image_stride), v("channel_stride", channel_stride), v("row_stride", row_stride);
    v("column_stride", column_stride);
    v("x", x), v("conv1", conv1), v("conv1_bias", conv1_bias), v("conv2", conv2), v("conv2_bias", conv2_bias);
    v("y", y);
  }
};

// Items: products of 16 pixels and 32 outputs that a warp has at most.
template <class T, int Warps, int Items>
struct StemTile {
  using Parameters = Stem;
  static constexpr int kThreads = kWarp * Warps, kBlocks = 2;
  static constexpr int kConv1Depth = 32, kConv1Stride = kConv1Depth + kPad;
  static constexpr int kInRow = 10, kPairsInRow = kInRow / 2;  // of the window, with the zero

  static int tiles(const Stem& p) { return p.images * p.tile_rows() * p.tile_columns(); }
  static bool fits(const Stem& p) {
    return blocks_of(p.row_tiles() * blocks_of(p.outputs, kColumns), Warps) <= Items;
  }
  static Reach reach(const Stem& p, int tile) {
    const int place = tile / p.tile_columns(), top = place % p.tile_rows() * p.tile_height;
    const int image = place / p.tile_rows() * p.y_height;
    const int end = top + p.tile_height < p.y_height ? top + p.tile_height : p.y_height;
    const int last = 4 * end - 1 < p.height ? 4 * end - 1 : p.height - 1;
    const int x_image = place / p.tile_rows() * p.height;
    return Reach(p.y, p.y_height, {image + top, image + end - 1})
        .and_reads(p.x, {x_image + (top ? 4 * top - 3 : 0), x_image + last});
  }
  static int shared_bytes(const Stem& p) {
    const auto piece = [](int count) { return round_up(count * 2, 128); };
    return piece(p.patch_height() * p.patch_stride()) + piece(p.between() * (p.depth() + kPad)) +
           piece(round_up(p.mid, kColumns) * kConv1Stride) +
           piece(round_up(p.outputs, kColumns) * (9 * p.depth() + kPad));
  }

  template <class Ready>
  EFFV2_DEVICE static void run(const Stem& p, const Buffers& buffers, int tile, Shared shared,
                               Ready&& ready) {
    const int column_of_tiles = tile % p.tile_columns(),
              row_of_tiles = tile / p.tile_columns() % p.tile_rows();
    const int image = tile / (p.tile_columns() * p.tile_rows());
    const int top = row_of_tiles * p.tile_height, left = column_of_tiles * p.tile_width;
    const int stride = p.depth() + kPad, conv2_stride = 9 * p.depth() + kPad;
    T* const patch = shared.take<T>(p.patch_height() * p.patch_stride());
    T* const between = shared.take<T>(p.between() * stride);
    T* const conv1 = shared.take<T>(round_up(p.mid, kColumns) * kConv1Stride);
    T* const conv2 = shared.take<T>(round_up(p.outputs, kColumns) * conv2_stride);
    load_rows(conv1, kConv1Stride, at<T>(buffers, p.conv1), round_up(p.mid, kColumns), kConv1Depth);
    load_rows(conv2, conv2_stride, at<T>(buffers, p.conv2), round_up(p.outputs, kColumns), 9 * p.depth());
    copy_commit();
    ready();
    load_patch(p, buffers, image, 4 * top - 3, 4 * left - 3, patch);
    copy_wait<0>();
    sync();
    first(p, buffers, patch, conv1, between, 2 * top - 1, 2 * left - 1);
    sync();
    second(p, buffers, between, conv2, conv2_stride, image, top, left);
  }

 private:
  EFFV2_DEVICE static void load_rows(T* to, int stride, const T* from, int rows, int depth) {
    EFFV2_ROLL
    for (int i = thread(); i < rows * (depth / 8); i += kThreads) {
      const int row = i / (depth / 8), k = i % (depth / 8) * 8;
      copy_async(to + row * stride + k, from + row * depth + k);
    }
  }

  // The image under the tile's windows, channels innermost, zeros around it.
  EFFV2_DEVICE static void load_patch(const Stem& p, const Buffers& buffers, int image, int top, int left,
                                      T* patch) {
    const T* const x = at<T>(buffers, p.x) + image * p.image_stride;
    const int row_values = p.patch_width() * Stem::kChannels;
    EFFV2_ROLL
    for (int i = thread(); i < p.patch_height() * p.patch_stride(); i += kThreads) {
      const int row = i / p.patch_stride(), place = i % p.patch_stride();
      // Neighbours in memory are neighbours among the threads: channels of a pixel, or pixels of a channel.
      const bool by_pixel = p.channel_stride == 1;
      const int channel = by_pixel ? place % Stem::kChannels : place / p.patch_width();
      const int column = by_pixel ? place / Stem::kChannels : place % p.patch_width();
      const int y = top + row, x_at = left + column;
      T value = from_float<T>(0);
      if (place < row_values && y >= 0 && y < p.height && x_at >= 0 && x_at < p.width) {
        value = load<T>(x + channel * p.channel_stride + y * p.row_stride + x_at * p.column_stride);
      }
      const int to = place < row_values ? column * Stem::kChannels + channel : place;
      store(patch + row * p.patch_stride() + to, value);
    }
  }

  // Of the first convolution what the second one's windows cover; zeros outside of its map.
  EFFV2_DEVICE static void first(const Stem& p, const Buffers& buffers, const T* patch, const T* conv1,
                                 T* between, int top, int left) {
    // Where in the patch the pairs of a window's values lie that this lane has of the left factor.
    int apart[4];
    EFFV2_UNROLL
    for (int i = 0; i < 4; ++i) {
      const int pair = 4 * i + lane() % 4;
      apart[i] = pair < 3 * kPairsInRow ? pair / kPairsInRow * p.patch_stride() + pair % kPairsInRow * 2 : -1;
    }
    const float* const bias = at<float>(buffers, p.conv1_bias);
    for (int m = warp(); m < blocks_of(p.between(), kRows); m += Warps) {
      Pair a[2][4];
      EFFV2_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int pixel = m * kRows + first_row_of_lane() + 8 * half;
        const int row = pixel / p.between_width(), column = pixel % p.between_width();
        const T* const corner = patch + 2 * row * p.patch_stride() + 2 * column * Stem::kChannels;
        EFFV2_UNROLL
        for (int i = 0; i < 4; ++i) {
          const bool there = apart[i] >= 0 && pixel < p.between();
          a[i / 2][i % 2 * 2 + half] = there ? load<Pair>(corner + apart[i]) : 0;
        }
      }
      for (int n = 0; n < blocks_of(p.mid, kColumns); ++n) {
        Sums sums;
        sums.clear();
        EFFV2_UNROLL
        for (int k = 0; k < 2; ++k) {
          multiply<T>(sums, a[k], conv1 + n * kColumns * kConv1Stride + k * kDepth, kConv1Stride);
        }
        const int channel = n * kColumns + first_column_of_lane();
        if (channel >= p.depth()) continue;
        float b[8];
        load_floats(b, bias + channel);
        EFFV2_UNROLL
        for (int half = 0; half < 2; ++half) {
          const int pixel = m * kRows + first_row_of_lane() + 8 * half;
          if (pixel >= p.between()) continue;
          const int row = top + pixel / p.between_width(), column = left + pixel % p.between_width();
          Eight made = zeros();
          if (row >= 0 && row < p.mid_height && column >= 0 && column < p.mid_width) {
            float v[8];
            sums.get(v, half);
            EFFV2_UNROLL
            for (int i = 0; i < 4; ++i) {
              made.pair[i] = activated<T>(p.activation, v[2 * i] + b[2 * i], v[2 * i + 1] + b[2 * i + 1]);
            }
          }
          store(between + pixel * (p.depth() + kPad) + channel, made);
        }
      }
    }
  }

  EFFV2_DEVICE static void second(const Stem& p, const Buffers& buffers, const T* between, const T* conv2,
                                  int conv2_stride, int image, int top, int left) {
    const int stride = p.depth() + kPad;
    Output<T> output(buffers, p.y, 0, p.conv2_bias, p.outputs, p.activation);
    EFFV2_UNROLL
    for (int i = 0; i < Items; ++i) {
      const int item = warp() + i * Warps, m = item % p.row_tiles(), n = item / p.row_tiles();
      if (n >= blocks_of(p.outputs, kColumns)) continue;
      const int of_lane = m * kRows + lane() % kRows, pixel = of_lane < p.pixels() ? of_lane : 0;
      const T* const corner =
          between + (2 * (pixel / p.tile_width) * p.between_width() + 2 * (pixel % p.tile_width)) * stride;
      Sums sums;
      sums.clear();
      for (int tap = 0; tap < 9; ++tap) {
        const T* const left_factor =
            corner + (tap / 3 * p.between_width() + tap % 3) * stride + lane() / kRows * 8;
        const T* const right = conv2 + n * kColumns * conv2_stride + tap * p.depth();
        for (int k = 0; k < p.depth(); k += kDepth) {
          Pair a[4];
          load_matrices<false>(a, left_factor + k);
          multiply<T>(sums, a, right + k, conv2_stride);
        }
      }
      if (!output.take_column(n * kColumns)) continue;
      EFFV2_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int made = m * kRows + first_row_of_lane() + 8 * half;
        const int row = top + made / p.tile_width, column = left + made % p.tile_width;
        if (made < p.pixels() && row < p.y_height && column < p.y_width) {
          output.put(sums, half, (image * p.y_height + row) * p.y_width + column);
        }
      }
    }
  }
};

}  // namespace effv2::cuda
