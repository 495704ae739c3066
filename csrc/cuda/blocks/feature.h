// A returned feature map: scale and shift of each channel, for eight channels of a pixel in each thread.
#pragma once

#include "cuda/address.h"
#include "cuda/reach.h"
#include "cuda/vector.h"

namespace effv2::cuda {

struct Feature {
  int images, height, width, channels;
  Address x, scale, shift, y;  // scale, shift: (channels) float

  EFFV2_ANYWHERE long long threads() const {
    return static_cast<long long>(images) * height * width * (channels / 8);
  }

  template <class V>
  void visit(V& v) {
    v("images", images), v("height", height), v("width", width), v("channels", channels), v("x", x),
        v("scale", scale), v("shift", shift), v("y", y);
  }
};

template <class T, int Threads>
struct FeatureTile {
  using Parameters = Feature;
  static constexpr int kThreads = Threads, kBlocks = 2;

  static int tiles(const Feature& p) { return blocks_of(p.threads(), Threads); }
  static bool fits(const Feature&) { return true; }
  static Reach reach(const Feature& p, int tile) {
    const long long of_row = static_cast<long long>(p.width) * (p.channels / 8);
    const long long first = static_cast<long long>(tile) * Threads, end = first + Threads;
    const Rows made{static_cast<int>(first / of_row),
                    static_cast<int>(((end < p.threads() ? end : p.threads()) - 1) / of_row)};
    return Reach(p.y, p.height, made).and_reads(p.x, made);
  }
  static int shared_bytes(const Feature&) { return 0; }

  template <class Ready>
  EFFV2_DEVICE static void run(const Feature& p, const Buffers& buffers, int tile, Shared, Ready&& ready) {
    ready();
    const int of_pixel = p.channels / 8;
    const long long number = static_cast<long long>(tile) * Threads + thread();
    if (number >= p.threads()) return;
    const int channel = static_cast<int>(number % of_pixel) * 8;
    float v[8], scale[8], shift[8];
    unpack<T>(v, load<Eight>(at<T>(buffers, p.x) + number * 8));
    load_floats(scale, at<float>(buffers, p.scale) + channel);
    load_floats(shift, at<float>(buffers, p.shift) + channel);
    Eight made;
    EFFV2_UNROLL
    for (int i = 0; i < 4; ++i) {
      made.pair[i] =
          pack<T>(v[2 * i] * scale[2 * i] + shift[2 * i], v[2 * i + 1] * scale[2 * i + 1] + shift[2 * i + 1]);
    }
    store(at<T>(buffers, p.y) + number * 8, made);
  }
};

}  // namespace effv2::cuda
