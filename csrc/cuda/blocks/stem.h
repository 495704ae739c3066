// The stem, f(conv2(f(conv1(image)))), both 3x3 with stride 2: a tile of pixels for each block of threads.
// What lies between the two exists in shared memory alone.
#pragma once

#include "cuda/address.h"
#include "cuda/reach.h"
#include "cuda/tiles/activation.h"
#include "cuda/tiles/cut.h"
#include "cuda/tiles/fragments.h"
#include "cuda/tiles/image.h"
#include "cuda/tiles/output.h"
#include "cuda/tiles/rows.h"
#include "cuda/vector.h"

namespace effv2::cuda {

struct Stem {
  Image image;
  int mid, mid_height, mid_width;  // between the convolutions
  int outputs, y_height, y_width;
  Activation activation;
  int tile_height, tile_width;  // pixels of y
  Address conv1, conv1_bias;    // as a product's, of 32 values an output: packing.image_factor
  Address conv2, conv2_bias;    // as a product's, of 9 taps of `mid` rounded up to 16 each
  Address y;

  EFFV2_ANYWHERE Cut cut() const { return {y_height, y_width, tile_height, tile_width}; }
  EFFV2_ANYWHERE int pixels() const { return tile_height * tile_width; }
  EFFV2_ANYWHERE int row_tiles() const { return blocks_of(pixels(), kRows); }
  EFFV2_ANYWHERE int depth() const { return round_up(mid, kDepth); }
  // Outputs of the first convolution that the second one's windows cover.
  EFFV2_ANYWHERE Patch patch() const { return {2 * tile_height + 1, 2 * tile_width + 1}; }

  template <class V>
  void visit(V& v) {
    image.visit(v);
    v("mid", mid), v("mid_height", mid_height), v("mid_width", mid_width);
    v("outputs", outputs), v("y_height", y_height), v("y_width", y_width), v("activation", activation);
    v("tile_height", tile_height), v("tile_width", tile_width);
    v("conv1", conv1), v("conv1_bias", conv1_bias), v("conv2", conv2), v("conv2_bias", conv2_bias), v("y", y);
  }
};

// Items: products of 16 pixels and 32 outputs that a warp has at most.
template <class T, int Warps, int Items>
struct StemTile {
  using Parameters = Stem;
  static constexpr int kThreads = kWarp * Warps, kBlocks = 2;
  using Convolution = ImageConvolution<T, Warps>;

  static int tiles(const Stem& p) { return p.image.images * p.cut().of_image(); }
  static bool fits(const Stem& p) {
    return blocks_of(p.row_tiles() * blocks_of(p.outputs, kColumns), Warps) <= Items;
  }
  static Reach reach(const Stem& p, int tile) {
    const Rows made = p.cut().rows_of(tile);
    const Rows between = rows_under(made, p.y_height, p.mid_height, 3, 2);
    return Reach(p.y, p.y_height, made)
        .and_reads(p.image.x, rows_under(between, p.mid_height, p.image.height, 3, 2));
  }
  static int shared_bytes(const Stem& p) {
    return taken<T>(p.patch().values()) + taken<T>(p.patch().outputs() * (p.depth() + kPad)) +
           taken<T>(round_up(p.mid, kColumns) * Convolution::kStride) +
           taken<T>(round_up(p.outputs, kColumns) * (9 * p.depth() + kPad));
  }

  template <class Ready>
  EFFV2_DEVICE static void run(const Stem& p, const Buffers& buffers, int tile, Shared shared,
                               Ready&& ready) {
    const auto [image, top, left] = p.cut().corner(tile);
    const int stride = p.depth() + kPad, conv2_stride = 9 * p.depth() + kPad;
    const Patch patch = p.patch();
    T* const values = shared.take<T>(patch.values());
    T* const between = shared.take<T>(patch.outputs() * stride);
    T* const conv1 = shared.take<T>(round_up(p.mid, kColumns) * Convolution::kStride);
    T* const conv2 = shared.take<T>(round_up(p.outputs, kColumns) * conv2_stride);
    load_rows<T, kThreads>(conv1, Convolution::kStride, round_up(p.mid, kColumns), Convolution::kWeights,
                           at<T>(buffers, p.conv1));
    load_rows<T, kThreads>(conv2, conv2_stride, round_up(p.outputs, kColumns), 9 * p.depth(),
                           at<T>(buffers, p.conv2));
    copy_commit();
    ready();
    Convolution::load_patch(p.image, buffers, image, 4 * top - 3, 4 * left - 3, patch, values);
    copy_wait<0>();
    sync();
    first(p, buffers, patch, values, conv1, between, 2 * top - 1, 2 * left - 1);
    sync();
    second(p, buffers, between, conv2, conv2_stride, image, top, left);
  }

 private:
  // Of the first convolution what the second one's windows cover; zeros outside of its map.
  EFFV2_DEVICE static void first(const Stem& p, const Buffers& buffers, const Patch& patch, const T* values,
                                 const T* conv1, T* between, int top, int left) {
    const float* const bias = at<float>(buffers, p.conv1_bias);
    Convolution::convolve(patch, values, conv1, p.mid, [&](int made, int n, const Sums& sums, int half) {
      const int channel = n * kColumns + first_column_of_lane();
      if (channel >= p.depth()) return;
      const int row = top + made / patch.columns, column = left + made % patch.columns;
      Eight out = zeros();
      if (row >= 0 && row < p.mid_height && column >= 0 && column < p.mid_width) {
        float v[8], b[8];
        sums.get(v, half);
        load_floats(b, bias + channel);
        EFFV2_UNROLL
        for (int i = 0; i < 4; ++i) {
          out.pair[i] = activated<T>(p.activation, v[2 * i] + b[2 * i], v[2 * i + 1] + b[2 * i + 1]);
        }
      }
      store(between + made * (p.depth() + kPad) + channel, out);
    });
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
          between + (2 * (pixel / p.tile_width) * p.patch().columns + 2 * (pixel % p.tile_width)) * stride;
      Sums sums;
      sums.clear();
      for (int tap = 0; tap < 9; ++tap) {
        const T* const left_factor =
            corner + (tap / 3 * p.patch().columns + tap % 3) * stride + lane() / kRows * 8;
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
