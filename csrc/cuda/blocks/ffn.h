// The bottleneck y = [x +] fc2(f(dw(f(fc1(x))))): a tile of pixels for each block of threads, the hidden
// channels a slice at a time.
//
// As a whole it is one launch, and the hidden map exists in shared memory alone: fc1 of the pixels around the
// tile is made by several blocks. Its two halves are launches of their own where that costs more than memory,
// or where one image has to be spread: FfnPart::widen stops behind f(dw(..)), which product.h's fc2 follows,
// and FfnPart::narrow begins with a hidden map. Where tiles are few, several blocks share one, each with some
// of the slices; the last of them to come adds the sums of all, in the order of the slices.
#pragma once

#include "cuda/address.h"
#include "cuda/reach.h"
#include "cuda/tiles/activation.h"
#include "cuda/tiles/cut.h"
#include "cuda/tiles/depthwise.h"
#include "cuda/tiles/fragments.h"
#include "cuda/tiles/output.h"
#include "cuda/vector.h"

namespace effv2::cuda {

enum class FfnPart : int { whole, widen, narrow };
constexpr const char* kFfnPartNames[] = {"whole", "widen", "narrow"};
constexpr const auto& names_of(FfnPart) { return kFfnPartNames; }

struct Ffn {
  FfnPart part;
  int images, height, width, channels;  // of x
  int y_height, y_width;
  int hidden, outputs;
  int stride;
  Activation activation;        // behind fc1 and behind the depthwise convolution
  int tile_height, tile_width;  // pixels of y; the width is a multiple of kRun
  int splits;                   // blocks that share a tile
  Address x;                    // narrow: the hidden map
  Address fc1, fc1_bias;        // as a product's w and bias
  Address dw, dw_bias;          // (9, hidden) taps, (hidden) float
  Address fc2, fc2_bias;        // as a product's w and bias
  Address residual, y;          // widen: y is (pixels, hidden)
  Address parts, arrivals;      // of tiles that are shared: sums, and two counters each, 0 at first

  EFFV2_ANYWHERE Cut cut() const { return {y_height, y_width, tile_height, tile_width}; }
  EFFV2_ANYWHERE int pixels() const { return tile_height * tile_width; }  // of a tile
  EFFV2_ANYWHERE int row_tiles() const { return blocks_of(pixels(), kRows); }
  EFFV2_ANYWHERE int halo_height() const { return (tile_height - 1) * stride + 3; }
  EFFV2_ANYWHERE int halo_width() const { return (tile_width - 1) * stride + 3; }
  EFFV2_ANYWHERE int halo() const { return halo_height() * halo_width(); }
  EFFV2_ANYWHERE int halo_tiles() const { return blocks_of(halo(), kRows); }
  EFFV2_ANYWHERE int column_tiles() const { return blocks_of(outputs, kColumns); }

  template <class V>
  void visit(V& v) {
    v("part", part), v("images", images), v("height", height), v("width", width), v("channels", channels);
    v("y_height", y_height), v("y_width", y_width), v("hidden", hidden), v("outputs", outputs);
    v("stride", stride), v("activation", activation);
    v("tile_height", tile_height), v("tile_width", tile_width), v("splits", splits);
    v("x", x), v("fc1", fc1), v("fc1_bias", fc1_bias), v("dw", dw), v("dw_bias", dw_bias);
    v("fc2", fc2), v("fc2_bias", fc2_bias), v("residual", residual), v("y", y);
    v("parts", parts), v("arrivals", arrivals);
  }
};

// Slice: hidden channels at a time. Items: products of 16 pixels and 32 outputs that a warp has at most.
template <class T, FfnPart Part, int Warps, int Slice, int Items>
struct FfnTile {
  using Parameters = Ffn;
  using Tap = TapOf<T>;
  // With more sums than that, registers are for one block of a multiprocessor alone.
  static constexpr int kThreads = kWarp * Warps,
                       kBlocks = (kIsHalf<T> ? Items > 2 : Part != FfnPart::widen) ? 1 : 2;
  static constexpr bool kWidens = Part != FfnPart::narrow, kNarrows = Part != FfnPart::widen;
  static constexpr int kStride = Slice + kPad;

  static int tiles(const Ffn& p) { return p.images * p.cut().of_image() * p.splits; }
  static bool fits(const Ffn& p) {
    return !kNarrows || blocks_of(p.row_tiles() * p.column_tiles(), Warps) <= Items;
  }
  static Reach reach(const Ffn& p, int tile) {
    const Rows made = p.cut().rows_of(tile / p.splits);
    return Reach(p.y, p.y_height, made)
        .and_reads(p.x, rows_under(made, p.y_height, p.height, 3, p.stride))
        .and_reads(p.residual, made);
  }
  static int shared_bytes(const Ffn& p) {
    const int depth = round_up(p.channels, kDepth) + kPad;
    int bytes = taken<std::uint16_t>(p.halo_tiles() * kRows);
    int slice = taken<Tap>(kTaps * Slice) + taken<float>(Slice);
    if (kWidens) {
      bytes += taken<T>(p.halo_tiles() * kRows * depth) + taken<T>(p.halo() * kStride);
      slice += taken<T>(Slice * depth) + taken<float>(Slice);
    } else {
      slice += taken<T>(p.halo() * kStride);
    }
    if (kNarrows) {
      bytes += taken<T>(p.row_tiles() * kRows * kStride);
      slice += taken<T>(p.column_tiles() * kColumns * kStride);
    }
    if (p.splits > 1) bytes += taken<int>(1);
    return bytes + 2 * slice;
  }

  // What of the weights, or of a hidden map, is under way while the slice before is used.
  struct Slices {
    T *fc1, *fc2, *wide;
    Tap* dw;
    float *fc1_bias, *dw_bias;
  };

  template <class Ready>
  EFFV2_DEVICE static void run(const Ffn& p, const Buffers& buffers, int tile, Shared shared, Ready&& ready) {
    const int split = tile % p.splits, place = tile / p.splits;
    const auto [image, top, left] = p.cut().corner(place);
    const int slices = blocks_of(p.hidden, Slice);
    const int first = slices * split / p.splits, last = slices * (split + 1) / p.splits;
    const int depth = round_up(p.channels, kDepth), x_stride = depth + kPad;

    std::uint16_t* const inside = shared.take<std::uint16_t>(p.halo_tiles() * kRows);  // the image
    T* const x = kWidens ? shared.take<T>(p.halo_tiles() * kRows * x_stride) : nullptr;
    T* const wide = kWidens ? shared.take<T>(p.halo() * kStride) : nullptr;                // f(fc1(x))
    T* const made = kNarrows ? shared.take<T>(p.row_tiles() * kRows * kStride) : nullptr;  // f(dw(wide))
    const auto take_slices = [&] {
      Slices s{};
      s.dw = shared.take<Tap>(kTaps * Slice);
      s.dw_bias = shared.take<float>(Slice);
      if (kWidens) s.fc1 = shared.take<T>(Slice * x_stride), s.fc1_bias = shared.take<float>(Slice);
      s.wide = kWidens ? wide : shared.take<T>(p.halo() * kStride);
      if (kNarrows) s.fc2 = shared.take<T>(p.column_tiles() * kColumns * kStride);
      return s;
    };
    const Slices even = take_slices(), odd = take_slices();
    int* const is_last = p.splits > 1 ? shared.take<int>(1) : nullptr;

    if (first < last) load_weights(p, buffers, first, even, depth);
    ready();
    load_input(p, buffers, image, top * p.stride - 1, left * p.stride - 1, inside, x, x_stride);
    if (!kWidens) {
      sync();  // inside[] is there
      if (first < last)
        load_wide(p, buffers, image, top * p.stride - 1, left * p.stride - 1, first, even, inside);
    }
    copy_commit();
    if (kNarrows) {  // rows that no pixel fills: products need numbers
      const int empty = p.row_tiles() * kRows - p.pixels();
      EFFV2_ROLL
      for (int i = thread(); i < empty * (Slice / 8); i += kThreads) {
        store(made + (p.pixels() + i / (Slice / 8)) * kStride + i % (Slice / 8) * 8, zeros());
      }
    }

    Sums sums[Items];
    EFFV2_UNROLL
    for (int i = 0; i < Items; ++i) sums[i].clear();
    for (int slice = first; slice < last; ++slice) {
      const bool is_odd = (slice - first) % 2;
      const Slices now = is_odd ? odd : even;
      copy_wait<0>();
      sync();  // this slice is there, and all are done with the one before
      if (slice + 1 < last) {
        const Slices next = is_odd ? even : odd;
        load_weights(p, buffers, slice + 1, next, depth);
        if (!kWidens) {
          load_wide(p, buffers, image, top * p.stride - 1, left * p.stride - 1, slice + 1, next, inside);
        }
      }
      copy_commit();
      if (kWidens) {
        widen(p, x, x_stride, depth, now, inside, slice);
        sync();
      }
      if (p.stride == 1) {
        convolve<1>(p, buffers, now, made, image, top, left, slice);
      } else {
        convolve<2>(p, buffers, now, made, image, top, left, slice);
      }
      if (kNarrows) {
        sync();
        narrow(p, made, now, sums);
      }
    }
    copy_wait<0>();
    if (!kNarrows) return;
    if (p.splits > 1 && !add_parts(p, buffers, sums, place, split, is_last)) return;
    finish(p, buffers, sums, image, top, left);
  }

 private:
  // The weights of a slice; of channels that do not exist, zeros.
  EFFV2_DEVICE static void load_weights(const Ffn& p, const Buffers& buffers, int slice, const Slices& to,
                                        int depth) {
    const int channel = slice * Slice, left = p.hidden - channel;
    if (kWidens) {
      const T* const fc1 = at<T>(buffers, p.fc1) + static_cast<long long>(channel) * depth;
      const int pieces = depth / 8, rows = round_up(p.hidden, kColumns) - channel;
      EFFV2_ROLL
      for (int i = thread(); i < Slice * pieces; i += kThreads) {
        const int row = i / pieces, at_depth = i % pieces * 8;
        const bool valid = row < rows;
        copy_async(to.fc1 + row * (depth + kPad) + at_depth, valid ? fc1 + row * depth + at_depth : fc1,
                   valid);
      }
      copy_floats(to.fc1_bias, at<float>(buffers, p.fc1_bias) + channel, rows);
    }
    copy_floats(to.dw_bias, at<float>(buffers, p.dw_bias) + channel, left);
    const Tap* const dw = at<Tap>(buffers, p.dw) + channel;
    constexpr int kInPiece = 16 / sizeof(Tap), kPieces = Slice / kInPiece;
    EFFV2_ROLL
    for (int i = thread(); i < kTaps * kPieces; i += kThreads) {
      const int tap = i / kPieces, c = i % kPieces * kInPiece;
      copy_async(to.dw + tap * Slice + c, c < left ? dw + tap * p.hidden + c : dw, c < left);
    }
    if (kNarrows) {
      const int fc2_depth = round_up(p.hidden, kDepth);
      const T* const fc2 = at<T>(buffers, p.fc2) + channel;
      constexpr int kOfRow = Slice / 8;
      EFFV2_ROLL
      for (int i = thread(); i < p.column_tiles() * kColumns * kOfRow; i += kThreads) {
        const int row = i / kOfRow, c = i % kOfRow * 8;
        const bool valid = channel + c < fc2_depth;
        copy_async(to.fc2 + row * kStride + c,
                   valid ? fc2 + static_cast<long long>(row) * fc2_depth + c : fc2, valid);
      }
    }
  }
  EFFV2_DEVICE static void copy_floats(float* to, const float* from, int count) {
    EFFV2_ROLL
    for (int i = thread(); i < Slice / 4; i += kThreads) {
      copy_async(to + 4 * i, 4 * i < count ? from + 4 * i : from, 4 * i < count);
    }
  }

  // The pixels under the tile's windows, beginning with (top, left), and which of them the image has.
  EFFV2_DEVICE static void load_input(const Ffn& p, const Buffers& buffers, int image, int top, int left,
                                      std::uint16_t* inside, T* x, int x_stride) {
    const auto is_inside = [&](int pixel, int& row, int& column) {
      row = top + pixel / p.halo_width(), column = left + pixel % p.halo_width();
      return pixel < p.halo() && row >= 0 && row < p.height && column >= 0 && column < p.width;
    };
    int row, column;
    EFFV2_ROLL
    for (int i = thread(); i < p.halo_tiles() * kRows; i += kThreads) {
      store(inside + i, static_cast<std::uint16_t>(is_inside(i, row, column)));
    }
    if (!kWidens) return;
    const T* const from = at<T>(buffers, p.x);
    const int pieces = (x_stride - kPad) / 8;
    EFFV2_ROLL
    for (int i = thread(); i < p.halo_tiles() * kRows * pieces; i += kThreads) {
      const int pixel = i / pieces, channel = i % pieces * 8;
      const bool valid = is_inside(pixel, row, column) && channel < p.channels;
      const long long number = (static_cast<long long>(image) * p.height + row) * p.width + column;
      copy_async(x + pixel * x_stride + channel, valid ? from + number * p.channels + channel : from, valid);
    }
  }
  // A slice of a hidden map under the tile's windows.
  EFFV2_DEVICE static void load_wide(const Ffn& p, const Buffers& buffers, int image, int top, int left,
                                     int slice, const Slices& to, const std::uint16_t* inside) {
    const T* const from = at<T>(buffers, p.x);
    constexpr int kPieces = Slice / 8;
    EFFV2_ROLL
    for (int i = thread(); i < p.halo() * kPieces; i += kThreads) {
      const int pixel = i / kPieces, c = i % kPieces * 8, channel = slice * Slice + c;
      const bool valid = load<std::uint16_t>(inside + pixel) && channel < p.hidden;
      const long long row = static_cast<long long>(image) * p.height + top + pixel / p.halo_width();
      const long long number = row * p.width + left + pixel % p.halo_width();
      copy_async(to.wide + pixel * kStride + c, valid ? from + number * p.hidden + channel : from, valid);
    }
  }

  // f(fc1(x)) of a slice; zeros where there is no pixel, as the depthwise convolution wants them, and of
  // channels that do not exist: their weights are zeros, which times an infinity are no numbers.
  EFFV2_DEVICE static void widen(const Ffn& p, const T* x, int x_stride, int depth, const Slices& now,
                                 const std::uint16_t* inside, int slice) {
    for (int m = warp(); m < p.halo_tiles(); m += Warps) {
      Sums sums[Slice / kColumns];
      EFFV2_UNROLL
      for (int n = 0; n < Slice / kColumns; ++n) sums[n].clear();
      EFFV2_ROLL
      for (int k = 0; k < depth; k += kDepth) {
        Pair a[4];
        load_left(a, x + m * kRows * x_stride + k, x_stride);
        EFFV2_UNROLL
        for (int n = 0; n < Slice / kColumns; ++n) {
          multiply<T>(sums[n], a, now.fc1 + n * kColumns * x_stride + k, x_stride);
        }
      }
      EFFV2_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int pixel = m * kRows + first_row_of_lane() + 8 * half;
        const bool is_inside = load<std::uint16_t>(inside + pixel);
        if (pixel >= p.halo()) continue;
        EFFV2_UNROLL
        for (int n = 0; n < Slice / kColumns; ++n) {
          const int channel = n * kColumns + first_column_of_lane();
          Eight out = zeros();
          if (is_inside && slice * Slice + channel < p.hidden) {
            float v[8];
            sums[n].get(v, half);
            const Floats low_bias = load<Floats>(now.fc1_bias + channel);
            const Floats high_bias = load<Floats>(now.fc1_bias + channel + 4);
            EFFV2_UNROLL
            for (int i = 0; i < 4; ++i) {
              const Floats& bias = i < 2 ? low_bias : high_bias;
              out.pair[i] = activated<T>(p.activation, v[2 * i] + bias.v[2 * i % 4],
                                         v[2 * i + 1] + bias.v[2 * i % 4 + 1]);
            }
          }
          store(wide_at(now, pixel, channel), out);
        }
      }
    }
  }
  EFFV2_DEVICE static T* wide_at(const Slices& now, int pixel, int channel) {
    return now.wide + pixel * kStride + channel;
  }

  // f(dw(wide)) of a slice, four channels of a run of pixels at a time.
  template <int Stride>
  EFFV2_DEVICE static void convolve(const Ffn& p, const Buffers& buffers, const Slices& now, T* made,
                                    int image, int top, int left, int slice) {
    constexpr int kGroups = Slice / 4;
    const int runs = p.tile_width / kRun;
    EFFV2_ROLL
    for (int i = thread(); i < p.tile_height * runs * kGroups; i += kThreads) {
      const int c = i % kGroups * 4, run = i / kGroups % runs * kRun, row = i / kGroups / runs;
      const DepthwiseTaps<T> taps(now.dw + c, Slice, now.dw_bias + c);
      const T* const from = wide_at(now, row * Stride * p.halo_width() + run * Stride, c);
      const int pixel = row * p.tile_width + run;
      T* to = kNarrows ? made + pixel * kStride + c : nullptr;
      if (!kNarrows) {
        const long long number =
            (static_cast<long long>(image) * p.y_height + top + row) * p.y_width + left + run;
        to = at<T>(buffers, p.y) + number * p.hidden + slice * Slice + c;
      }
      const bool exists = kNarrows || (top + row < p.y_height && slice * Slice + c < p.hidden);
      depthwise_run<T, Stride>(
          taps, [&](int r, int column) { return load<Four>(from + (r * p.halo_width() + column) * kStride); },
          [&](int o, Four v) {
            v.pair[0] = activated<T>(p.activation, v.pair[0]);
            v.pair[1] = activated<T>(p.activation, v.pair[1]);
            if (kNarrows) {
              store(to + o * kStride, v);
            } else if (exists && left + run + o < p.y_width) {
              store(to + static_cast<long long>(o) * p.hidden, v);
            }
          });
    }
  }

  // Which 16 pixels and 32 outputs an item of this warp is.
  EFFV2_DEVICE static bool item(const Ffn& p, int i, int& row_tile, int& column_tile) {
    const int number = warp() + i * Warps;
    row_tile = number % p.row_tiles(), column_tile = number / p.row_tiles();
    return column_tile < p.column_tiles();
  }
  EFFV2_DEVICE static void narrow(const Ffn& p, const T* made, const Slices& now, Sums (&sums)[Items]) {
    EFFV2_UNROLL
    for (int i = 0; i < Items; ++i) {
      int m, n;
      if (!item(p, i, m, n)) continue;
      EFFV2_UNROLL
      for (int k = 0; k < Slice; k += kDepth) {
        Pair a[4];
        load_left(a, made + m * kRows * kStride + k, kStride);
        multiply<T>(sums[i], a, now.fc2 + n * kColumns * kStride + k, kStride);
      }
    }
  }

  // Whether this block is the last of those that share a tile; it then has the sums of all.
  EFFV2_DEVICE static bool add_parts(const Ffn& p, const Buffers& buffers, Sums (&sums)[Items], int place,
                                     int split, int* is_last) {
    Floats* const parts = at<Floats>(buffers, p.parts);
    const auto part = [&](int which, int i, int j) {
      return parts + (((static_cast<long long>(place) * p.splits + which) * Items + i) * 4 + j) * kThreads +
             thread();
    };
    EFFV2_UNROLL
    for (int i = 0; i < Items; ++i) {
      EFFV2_UNROLL
      for (int j = 0; j < 4; ++j) {
        const float (&v)[4] = sums[i].v[j];
        store(part(split, i, j), Floats{{v[0], v[1], v[2], v[3]}});
      }
    }
    sync();
    std::uint32_t* const released = at<std::uint32_t>(buffers, p.arrivals) + 2 * place;
    if (thread() == 0) {
      release_add(released, 1);
      const auto before = static_cast<std::uint32_t>(fetch_add(reinterpret_cast<int*>(released) + 1, 1));
      const bool last = (before + 1) % p.splits == 0;
      if (last) acquire_reached(released, before + 1);
      store(is_last, static_cast<int>(last));
    }
    sync();
    if (!load<int>(is_last)) return false;
    EFFV2_UNROLL
    for (int i = 0; i < Items; ++i) {
      sums[i].clear();
      for (int which = 0; which < p.splits; ++which) {
        EFFV2_UNROLL
        for (int j = 0; j < 4; ++j) {
          const Floats v = load<Floats>(part(which, i, j));
          EFFV2_UNROLL
          for (int k = 0; k < 4; ++k) sums[i].v[j][k] += v.v[k];
        }
      }
    }
    return true;
  }

  EFFV2_DEVICE static void finish(const Ffn& p, const Buffers& buffers, const Sums (&sums)[Items], int image,
                                  int top, int left) {
    Output<T> output(buffers, p.y, p.residual, p.fc2_bias, p.outputs, Activation::none);
    EFFV2_UNROLL
    for (int i = 0; i < Items; ++i) {
      int m, n;
      if (!item(p, i, m, n) || !output.take_column(n * kColumns)) continue;
      EFFV2_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int pixel = m * kRows + first_row_of_lane() + 8 * half;
        const int row = top + pixel / p.tile_width, column = left + pixel % p.tile_width;
        if (pixel < p.pixels() && row < p.y_height && column < p.y_width) {
          output.put(sums[i], half, (image * p.y_height + row) * p.y_width + column);
        }
      }
    }
  }
};

}  // namespace effv2::cuda
