// A convolution of an image by itself, y = f(conv3x3(image)) with stride 2: what networks begin with that
// have no stem.
#pragma once

#include "cuda/reach.h"
#include "cuda/tiles/activation.h"
#include "cuda/tiles/cut.h"
#include "cuda/tiles/image.h"
#include "cuda/tiles/output.h"
#include "cuda/tiles/rows.h"

namespace effv2::cuda {

struct ImageConv {
  Image image;
  int outputs, y_height, y_width;
  Activation activation;
  int tile_height, tile_width;  // pixels of y
  Address w, bias;              // as a product's, of 32 values an output: packing.image_factor
  Address y;

  EFFV2_ANYWHERE Cut cut() const { return {y_height, y_width, tile_height, tile_width}; }
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

  static int tiles(const ImageConv& p) { return p.image.images * p.cut().of_image(); }
  static bool fits(const ImageConv&) { return true; }
  static Reach reach(const ImageConv& p, int tile) {
    const Rows made = p.cut().rows_of(tile);
    return Reach(p.y, p.y_height, made)
        .and_reads(p.image.x, rows_under(made, p.y_height, p.image.height, 3, 2));
  }
  static int shared_bytes(const ImageConv& p) {
    return taken<T>(p.patch().values()) + taken<T>(round_up(p.outputs, kColumns) * Convolution::kStride);
  }

  template <class Ready>
  EFFV2_DEVICE static void run(const ImageConv& p, const Buffers& buffers, int tile, Shared shared,
                               Ready&& ready) {
    const Cut::Corner corner = p.cut().corner(tile);
    const Patch patch = p.patch();
    T* const values = shared.take<T>(patch.values());
    T* const w = shared.take<T>(round_up(p.outputs, kColumns) * Convolution::kStride);
    load_rows<T, kThreads>(w, Convolution::kStride, round_up(p.outputs, kColumns), Convolution::kWeights,
                           at<T>(buffers, p.w));
    copy_commit();
    ready();
    Convolution::load_patch(p.image, buffers, corner.image, 2 * corner.top - 1, 2 * corner.left - 1, patch,
                            values);
    copy_wait<0>();
    sync();
    Output<T> output(buffers, p.y, 0, p.bias, p.outputs, p.activation);
    Convolution::convolve(patch, values, w, p.outputs, [&](int made, int n, const Sums& sums, int half) {
      const int row = corner.top + made / p.tile_width, column = corner.left + made % p.tile_width;
      if (row < p.y_height && column < p.y_width && output.take_column(n * kColumns)) {
        output.put(sums, half, (corner.image * p.y_height + row) * p.y_width + column);
      }
    });
  }
};

}  // namespace effv2::cuda
