// A 3x3 depthwise convolution by itself, four channels of a run of pixels in each thread: where an attention
// halves its resolution, and in bottlenecks that are too wide for a tile of theirs.
#pragma once

#include "cuda/address.h"
#include "cuda/reach.h"
#include "cuda/tiles/activation.h"
#include "cuda/tiles/depthwise.h"

namespace effv2::cuda {

struct Depthwise {
  int images, height, width, channels, y_height, y_width, stride;
  Activation activation;
  Address x, dw, dw_bias, y;  // dw: (9, channels) taps; dw_bias: (channels) float

  EFFV2_ANYWHERE int runs() const { return blocks_of(y_width, kRun); }  // of a row

  template <class V>
  void visit(V& v) {
    v("images", images), v("height", height), v("width", width), v("channels", channels);
    v("y_height", y_height), v("y_width", y_width), v("stride", stride), v("activation", activation);
    v("x", x), v("dw", dw), v("dw_bias", dw_bias), v("y", y);
  }
};

template <class T, int Threads>
struct DepthwiseTile {
  using Parameters = Depthwise;
  static constexpr int kThreads = Threads, kBlocks = 2;

  static int tiles(const Depthwise& p) {
    return blocks_of(static_cast<long long>(p.images) * p.y_height * p.runs() * (p.channels / 4), Threads);
  }
  // Its threads count in 32 bits.
  static bool fits(const Depthwise& p) {
    return static_cast<long long>(p.images) * p.y_height * p.runs() * (p.channels / 4) <=
           kMostCounted - Threads;
  }
  static Reach reach(const Depthwise& p, int tile) {
    const int of_row = p.runs() * (p.channels / 4), all = p.images * p.y_height - 1;
    const int last = ((tile + 1) * Threads - 1) / of_row;
    const Rows made{tile * Threads / of_row, last < all ? last : all};
    return Reach(p.y, p.y_height, made).and_reads(p.x, rows_under(made, p.y_height, p.height, 3, p.stride));
  }
  static int shared_bytes(const Depthwise&) { return 0; }

  template <class Ready>
  EFFV2_DEVICE static void run(const Depthwise& p, const Buffers& buffers, int tile, Shared, Ready&& ready) {
    ready();
    if (p.stride == 1) {
      run_with<1>(p, buffers, tile);
    } else {
      run_with<2>(p, buffers, tile);
    }
  }

 private:
  template <int Stride>
  EFFV2_DEVICE static void run_with(const Depthwise& p, const Buffers& buffers, int tile) {
    const int groups = p.channels / 4, number = tile * Threads + thread();
    const int channel = number % groups * 4, place = number / groups;
    const int left = place % p.runs() * kRun, row = place / p.runs() % p.y_height;
    const int image = place / (p.runs() * p.y_height);
    if (image >= p.images) return;
    const DepthwiseTaps<T> taps(at<TapOf<T>>(buffers, p.dw) + channel, p.channels,
                                at<float>(buffers, p.dw_bias) + channel);
    const T* const x = at<T>(buffers, p.x) + channel;
    T* const y = at<T>(buffers, p.y) + channel;
    const long long rows = static_cast<long long>(image) * p.height,
                    y_rows = static_cast<long long>(image) * p.y_height;
    depthwise_run<T, Stride>(
        taps,
        [&](int r, int c) {
          const int from_row = row * Stride - 1 + r, from_column = left * Stride - 1 + c;
          if (from_row < 0 || from_row >= p.height || from_column < 0 || from_column >= p.width)
            return Four{{0, 0}};
          return load<Four>(x + ((rows + from_row) * p.width + from_column) * p.channels);
        },
        [&](int o, Four v) {
          if (left + o >= p.y_width) return;
          v.pair[0] = activated<T>(p.activation, v.pair[0]);
          v.pair[1] = activated<T>(p.activation, v.pair[1]);
          store(y + ((y_rows + row) * p.y_width + left + o) * p.channels, v);
        });
  }
};

}  // namespace effv2::cuda
