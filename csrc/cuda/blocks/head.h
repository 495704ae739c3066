// The head is a product of means: what makes these, for eight channels in each thread.
#pragma once

#include "cuda/address.h"
#include "cuda/reach.h"
#include "cuda/vector.h"

namespace effv2::cuda {

struct Mean {
  int images, height, width, channels;
  Address x, y;  // y: (images, channels)

  EFFV2_ANYWHERE int pixels() const { return height * width; }

  template <class V>
  void visit(V& v) {
    v("images", images), v("height", height), v("width", width), v("channels", channels), v("x", x),
        v("y", y);
  }
};

template <class T, int Threads>
struct MeanTile {
  using Parameters = Mean;
  static constexpr int kThreads = Threads, kBlocks = 2;

  static int tiles(const Mean& p) {
    return blocks_of(static_cast<long long>(p.images) * p.channels, 8 * Threads);
  }
  static bool fits(const Mean&) { return true; }
  static Reach reach(const Mean& p, int tile) {
    const int of_image = p.channels / 8, all = p.images * of_image - 1;
    const int last = (tile + 1) * Threads - 1;
    const Rows made{tile * Threads / of_image, (last < all ? last : all) / of_image};
    return Reach(p.y, 1, made).and_reads(p.x, whole_images(made, 1, p.height));
  }
  static int shared_bytes(const Mean&) { return 0; }

  template <class Ready>
  EFFV2_DEVICE static void run(const Mean& p, const Buffers& buffers, int tile, Shared, Ready&& ready) {
    ready();
    const int number = tile * Threads + thread(), of_image = p.channels / 8;
    if (number >= p.images * of_image) return;
    const int image = number / of_image, channel = number % of_image * 8;
    const T* from = at<T>(buffers, p.x) + static_cast<long long>(image) * p.pixels() * p.channels + channel;
    float sums[8] = {};
    for (int pixel = 0; pixel < p.pixels(); ++pixel, from += p.channels) {
      float v[8];
      unpack<T>(v, load<Eight>(from));
      EFFV2_UNROLL
      for (int i = 0; i < 8; ++i) sums[i] += v[i];
    }
    const float share = 1.0f / static_cast<float>(p.pixels());
    Eight made;
    EFFV2_UNROLL
    for (int i = 0; i < 4; ++i) made.pair[i] = pack<T>(sums[2 * i] * share, sums[2 * i + 1] * share);
    store(at<T>(buffers, p.y) + static_cast<long long>(image) * p.channels + channel, made);
  }
};

}  // namespace effv2::cuda
