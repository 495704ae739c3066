// A convolution of an image by itself, y = f(conv3x3(image)) with stride 2: what networks begin with that
// have no stem.
#pragma once

#include "cuda/reach.h"
#include "cuda/tiles/activation.h"
#include "cuda/tiles/image.h"
#include "cuda/tiles/output.h"

namespace effv2::cuda {

struct ImageConv {
  Image image;
  int outputs, y_height, y_width;
  Activation activation;
  int tile_height, tile_width;  // pixels of y
  Address w, bias;              // as a product's, of 32 values an output: packing.image_factor
  Address y;

  EFFV2_ANYWHERE int tile_rows() const { return blocks_of(y_height, tile_height); }
  EFFV2_ANYWHERE int tile_columns() const { return blocks_of(y_width, tile_width); }
  EFFV2_ANYWHERE Patch patch() const { return {tile_height, tile_width}; }

  template <class V>
  void visit(V& v) {
    image.visit(v);
    v("outputs", outputs), v("y_height", y_height), v("y_width", y_width), v("activation", activation);
    v("tile_height", tile_height), v("tile_width", tile_width), v("w", w), v("bias", bias), v("y", y);
  }
};

template <class T, int Warps>
struct ImageConvTile {
  using Parameters = ImageConv;
  using Convolution = ImageConvolution<T, Warps>;
  static constexpr int kThreads = kWarp * Warps, kBlocks = 2;

  static int tiles(const ImageConv& p) { return p.image.images * p.tile_rows() * p.tile_columns(); }
  static bool fits(const ImageConv&) { return true; }
  static Reach reach(const ImageConv& p, int tile) {
    const int place = tile / p.tile_columns(), top = place % p.tile_rows() * p.tile_height;
    const int image = place / p.tile_rows() * p.y_height;
    const int end = top + p.tile_height < p.y_height ? top + p.tile_height : p.y_height;
    const Rows made{image + top, image + end - 1};
    return Reach(p.y, p.y_height, made)
        .and_reads(p.image.x, rows_under(made, p.y_height, p.image.height, 3, 2));
  }
  static int shared_bytes(const ImageConv& p) {
    return round_up(p.patch().values() * 2, 128) +
           round_up(round_up(p.outputs, kColumns) * Convolution::kStride * 2, 128);
  }

  template <class Ready>
  EFFV2_DEVICE static void run(const ImageConv& p, const Buffers& buffers, int tile, Shared shared,
                               Ready&& ready) {
    const int place = tile / p.tile_columns(), image = place / p.tile_rows();
    const int top = place % p.tile_rows() * p.tile_height, left = tile % p.tile_columns() * p.tile_width;
    const Patch patch = p.patch();
    T* const values = shared.take<T>(patch.values());
    T* const w = shared.take<T>(round_up(p.outputs, kColumns) * Convolution::kStride);
    Convolution::load_weights(w, Convolution::kStride, at<T>(buffers, p.w), round_up(p.outputs, kColumns),
                              Convolution::kWeights);
    copy_commit();
    ready();
    Convolution::load_patch(p.image, buffers, image, 2 * top - 1, 2 * left - 1, patch, values);
    copy_wait<0>();
    sync();
    Output<T> output(buffers, p.y, 0, p.bias, p.outputs, p.activation);
    Convolution::convolve(patch, values, w, p.outputs, [&](int made, int n, const Sums& sums, int half) {
      const int row = top + made / p.tile_width, column = left + made % p.tile_width;
      if (row < p.y_height && column < p.y_width && output.take_column(n * kColumns)) {
        output.put(sums, half, (image * p.y_height + row) * p.y_width + column);
      }
    });
  }
};

}  // namespace effv2::cuda
