// Depthwise convolution: a window of one channel at a time, with padding so that its middle is on the map.
//
// Weights are packed [panel][taps][kPanel]: kernel x kernel taps, row by row, then the bias. Taps and sums
// are operands.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cpu/tiles/product.h"
#include "engine/block.h"

namespace effv2::EFFV2_TARGET {

// Which of the three rows of a window exist: bit r for row r.
template <unsigned Rows>
struct RowMask {
  static constexpr unsigned kRows = Rows;
};

// Rows of an input map, top to bottom, as far as windows reach; those outside of the map are null. Pixel x of
// row y lies at rows[y] + x * pixel_stride.
template <class In>
struct InputRows {
  const In* const* rows;  // the first one is the top of the first window
  std::int64_t pixel_stride;
  int width;
};

// Output rows, one behind the other.
struct OutputRows {
  Operand* data;
  std::int64_t pixel_stride;
  int width;
  int count;
  std::int64_t row_stride() const { return pixel_stride * width; }
};

// The nine taps of a vector of channels, in registers for all rows, and what follows them.
struct Taps3x3 {
  Vec of[9];
  Vec bias;
  Clamp clamp;
};

// One output; place: of the middle of its window in a row. left, right: whether the window has these columns.
// channels: how many exist, where not Whole.
template <unsigned kRows, bool Whole, bool Clamped, class In>
EFFV2_INLINE void depthwise_pixel(const In* const* rows, std::int64_t place, std::int64_t step, bool left,
                                  bool right, const Taps3x3& taps, Operand* out, int channels) {
  Vec sum = taps.bias;
#pragma GCC unroll 3
  for (int row = 0; row < 3; ++row) {
    if (!((kRows >> row) & 1u)) continue;
    const In* p = rows[row] + place;
    const auto at = [&](std::int64_t offset) {
      return Whole ? load(p + offset) : load_n(p + offset, channels);
    };
    if (left) sum = fma(at(-step), taps.of[row * 3], sum);
    sum = fma(at(0), taps.of[row * 3 + 1], sum);
    if (right) sum = fma(at(step), taps.of[row * 3 + 2], sum);
  }
  if (Clamped) sum = taps.clamp(sum);
  if (Whole) {
    store(out, sum);
  } else {
    store_n(out, sum, channels);
  }
}

// kTogether neighbours in each of OutRows rows of outputs, which share what they read; their sums are
// independent of each other.
template <int OutRows, unsigned kRows, bool Left, bool Right, bool Clamped, class In, class Step>
EFFV2_INLINE void depthwise_neighbours(const In* const* rows, std::int64_t place, Step step,
                                       const Taps3x3& taps, Operand* out, Step out_step,
                                       std::int64_t out_row_stride) {
  static_assert(OutRows == 1 || kRows == 7, "windows of several rows are whole");
  Vec sum[OutRows][kTogether];
#pragma GCC unroll 2
  for (int y = 0; y < OutRows; ++y) {
#pragma GCC unroll 8
    for (int i = 0; i < kTogether; ++i) sum[y][i] = taps.bias;
  }
#pragma GCC unroll 4
  for (int row = 0; row < OutRows + 2; ++row) {
    if (OutRows == 1 && !((kRows >> row) & 1u)) continue;
    const In* p = rows[row] + place;
#pragma GCC unroll 16
    for (int j = Left ? -1 : 0; j < kTogether + (Right ? 1 : 0); ++j) {
      Vec value = load(p + j * step);
      keep(value);
#pragma GCC unroll 2
      for (int y = 0; y < OutRows; ++y) {
        if (row < y || row >= y + 3) continue;
#pragma GCC unroll 8
        for (int i = 0; i < kTogether; ++i) {
          const int tap = j - i + 1;
          if (tap >= 0 && tap < 3) sum[y][i] = fma(value, taps.of[(row - y) * 3 + tap], sum[y][i]);
        }
      }
    }
  }
#pragma GCC unroll 2
  for (int y = 0; y < OutRows; ++y, out += out_row_stride) {
#pragma GCC unroll 8
    for (int i = 0; i < kTogether; ++i) {
      store(out + i * out_step, Clamped ? taps.clamp(sum[y][i]) : sum[y][i]);
    }
  }
}

// OutRows rows of outputs, whose windows are the three rows of `in` from their own on.
template <int OutRows, unsigned kRows, int Stride, bool Whole, bool Clamped, class In, class Step>
EFFV2_INLINE void depthwise_rows(const In* const* rows, int in_width, Step step, int channel,
                                 const Taps3x3& taps, Operand* out, Step out_step, const OutputRows& to,
                                 int channels) {
  const int width = to.width;
  int x = 0;
  if constexpr (Stride == 1 && Whole) {
    const auto neighbours = [&](int first, auto left, auto right) __attribute__((always_inline)) {
      depthwise_neighbours<OutRows, kRows, left.value, right.value, Clamped>(
          rows, channel + first * step, step, taps, out + first * out_step, out_step, to.row_stride());
    };
    constexpr std::true_type kYes;
    constexpr std::false_type kNo;
    if (width == kTogether) {
      neighbours(0, kNo, kNo);
      x = kTogether;
    } else if (width > kTogether) {
      neighbours(0, kNo, kYes);
      for (x = kTogether; x + kTogether < width; x += kTogether) neighbours(x, kYes, kYes);
      if (2 * (width - x) > kTogether) {  // worth a group, though it computes some pixels again
        neighbours(width - kTogether, kYes, kNo);
        x = width;
      }
    }
  }
  for (; x < width; ++x) {
    for (int y = 0; y < OutRows; ++y) {
      depthwise_pixel<kRows, Whole, Clamped>(rows + y, channel + std::int64_t{x} * Stride * step, step, x > 0,
                                             x * Stride + 1 < in_width, taps,
                                             out + y * to.row_stride() + x * out_step, channels);
    }
  }
}

// One vector of channels, 3x3; the window of output row y begins at rows[y * Stride]. channels: how many
// exist, where not Whole. The steps from pixel to pixel are those of `in` and `to`, constants where they can
// be: their multiples are then part of the instructions.
template <int Stride, bool Whole, bool Clamped, class In, class Step>
EFFV2_INLINE void depthwise_vector(const InputRows<In>& in, Step step, int channel, const Operand* weights,
                                   Clamp clamp, const OutputRows& to, Step out_step, int channels) {
  Taps3x3 taps;
#pragma GCC unroll 9
  for (int i = 0; i < 9; ++i) taps.of[i] = load(weights + channel + i * kPanel);
  taps.bias = load(weights + channel + 9 * kPanel);
  taps.clamp = clamp;
  Operand* out = to.data + channel;
  constexpr int kRowsAtOnce = Stride == 1 && Whole ? kRowsTogether : 1;
  for (int y = 0, count; y < to.count; y += count, out += count * to.row_stride()) {
    const In* const* rows = in.rows + y * Stride;
    const auto run = [&](auto out_rows, auto mask) __attribute__((always_inline)) {
      depthwise_rows<out_rows.value, decltype(mask)::kRows, Stride, Whole, Clamped>(
          rows, in.width, step, channel, taps, out, out_step, to, channels);
    };
    constexpr std::integral_constant<int, kRowsAtOnce> kAll;
    constexpr std::integral_constant<int, 1> kOne;
    // Only first and last rows are missing.
    if (kAll > kOne && to.count - y >= kAll && rows[0] && rows[kAll + 1]) {
      run(kAll, RowMask<7>{});
      count = kAll;
      continue;
    }
    count = 1;
    if (rows[0] && rows[2]) {
      run(kOne, RowMask<7>{});
    } else if (rows[0]) {
      run(kOne, RowMask<3>{});
    } else if (rows[2]) {
      run(kOne, RowMask<6>{});
    } else {
      run(kOne, RowMask<2>{});
    }
  }
}

// One vector of channels, a window of any size: taps come from the cache.
template <bool Whole, class In>
EFFV2_INLINE void wide_depthwise_vector(const InputRows<In>& in, int kernel, int stride, int channel,
                                        const Operand* taps, Clamp clamp, const OutputRows& to,
                                        int channels) {
  Operand* out = to.data + channel;
  const Vec bias = load(taps + channel + kernel * kernel * kPanel);
  for (int y = 0; y < to.count; ++y, out += to.row_stride()) {
    for (int x = 0; x < to.width; ++x) {
      const int left = x * stride - kernel / 2;
      const int begin = left < 0 ? -left : 0, end = left + kernel > in.width ? in.width - left : kernel;
      Vec sum = bias;
      for (int row = 0; row < kernel; ++row) {
        const In* const map_row = in.rows[y * stride + row];
        if (!map_row) continue;
        const In* p = map_row + channel + (left + begin) * in.pixel_stride;
        for (int tap = begin; tap < end; ++tap, p += in.pixel_stride) {
          sum = fma(Whole ? load(p) : load_n(p, channels),
                    load(taps + channel + (row * kernel + tap) * kPanel), sum);
        }
      }
      if (clamp.any) sum = clamp(sum);
      if (Whole) {
        store(out + x * to.pixel_stride, sum);
      } else {
        store_n(out + x * to.pixel_stride, sum, channels);
      }
    }
  }
}

// The packed weights of a depthwise convolution, and its rows.
class Depthwise {
 public:
  static constexpr int kLargestKernel = 7;
  static constexpr int kSharedRows = 16;  // at a time, of those that a team shares out

  Depthwise() = default;
  // channels: with those that only fill panels up.
  Depthwise(int channels, int kernel, int stride)
      : kernel_(kernel),
        stride_(stride),
        taps_(static_cast<std::int64_t>(panels_of(channels)) * panel_values()) {}
  // weight: (channels, kernel, kernel).
  Depthwise(const float* weight, const float* bias, int channels, int kernel, int stride, Scale scale = {})
      : Depthwise(channels, kernel, stride) {
    for (int c = 0; c < channels; ++c) set(c, weight + c * kernel * kernel, bias[c], scale);
  }

  void set(int channel, const float* weight, float bias, Scale scale) {
    Operand* to =
        taps_.data() + static_cast<std::int64_t>(channel / kPanel) * panel_values() + channel % kPanel;
    for (int tap = 0; tap < kernel_ * kernel_; ++tap) {
      to[tap * kPanel] = static_cast<Operand>(scaled(weight[tap], scale.weight));
    }
    to[kernel_ * kernel_ * kPanel] = static_cast<Operand>(scaled(bias, scale.bias));
  }
  void set_clamp(Clamp clamp) { clamp_ = clamp; }

  int kernel() const { return kernel_; }
  int stride() const { return stride_; }
  int padding() const { return kernel_ / 2; }
  int outputs(int inputs) const { return (inputs + stride_ - 1) / stride_; }
  // Rows of input that `rows` rows of output need.
  int reach(int rows) const { return (rows - 1) * stride_ + kernel_; }
  std::int64_t bytes() const { return taps_.bytes(); }

  void prefetch_panel(int p) const {
    prefetch_bytes(panel(p), panel_values() * std::int64_t{sizeof(Operand)});
  }

  // Output rows of panel p; channels: how many of the panel's exist in memory.
  template <class In>
  void run(int p, const InputRows<In>& in, const OutputRows& out, int channels) const {
    if (kernel_ != 3) {
      vectors(channels, [&](auto whole, int c, int left) {
        wide_depthwise_vector<decltype(whole)::value>(in, kernel_, stride_, c, panel(p), clamp_, out, left);
      });
    } else if (clamp_.any) {
      stride_ == 1 ? run3x3<1, true>(p, in, out, channels) : run3x3<2, true>(p, in, out, channels);
    } else {
      stride_ == 1 ? run3x3<1, false>(p, in, out, channels) : run3x3<2, false>(p, in, out, channels);
    }
  }

  // The same for rows [begin, end) of the output of a map that lies whole in memory; out: of the first of
  // them.
  template <class In>
  void run_map(int p, const In* map, Map size, std::int64_t pixel_stride, Range rows, Operand* out,
               std::int64_t out_pixel_stride, int channels) const {
    // A few rows at a time: the list of rows lives on the stack.
    constexpr int kGroup = 16;
    const int out_width = outputs(size.width);
    for (int begin = rows.begin; begin < rows.end; begin += kGroup) {
      const int count = rows.end - begin < kGroup ? rows.end - begin : kGroup;
      const In* window[(kGroup - 1) * 2 + kLargestKernel];
      for (int i = 0; i < reach(count); ++i) {
        const int y = begin * stride_ + i - padding();
        window[i] = y >= 0 && y < size.height ? map + y * pixel_stride * size.width : nullptr;
      }
      const OutputRows to{out + (begin - rows.begin) * out_pixel_stride * out_width, out_pixel_stride,
                          out_width, count};
      run(p, InputRows<In>{window, pixel_stride, size.width}, to, channels);
    }
  }

  // All channels of a dense map into another one, shared out by rows: who wrote the rows of the map has most
  // of them at hand.
  template <class In>
  void share(const Team& team, const In* x, Map in, Operand* out) const {
    deal(team, outputs(in.height), Parts{kSharedRows}, [&](Range mine, bool) {
      const std::int64_t first_row = std::int64_t{mine.begin} * outputs(in.width) * in.channels;
      for (int p = 0; p < panels_of(in.channels); ++p) {
        const int first = p * kPanel, left = in.channels - first;
        run_map(p, x + first, in, in.channels, mine, out + first_row + first, in.channels,
                left < kPanel ? left : kPanel);
      }
    });
  }

 private:
  // f(whole, first channel, channels that exist) for each vector of a panel.
  template <class Function>
  static void vectors(int channels, Function f) {
    for (int c = 0; c < channels; c += kLanes) {
      if (channels - c >= kLanes) {
        f(std::true_type{}, c, kLanes);
      } else {
        f(std::false_type{}, c, channels - c);
      }
    }
  }
  template <int Stride, bool Clamped, class In>
  void run3x3(int p, const InputRows<In>& in, const OutputRows& out, int channels) const {
    vectors(channels, [&](auto whole, int c, int left) {
      const auto run = [&](auto step, auto out_step) {
        depthwise_vector<Stride, decltype(whole)::value, Clamped>(in, step, c, panel(p), clamp_, out,
                                                                  out_step, left);
      };
      if constexpr (whole.value && std::is_same_v<In, Operand>) {  // which panels hold
        constexpr std::integral_constant<std::int64_t, kPanel> kStep;
        if (in.pixel_stride == kStep && out.pixel_stride == kStep) return run(kStep, kStep);
      }
      run(in.pixel_stride, out.pixel_stride);
    });
  }
  std::int64_t panel_values() const { return std::int64_t{kernel_ * kernel_ + 1} * kPanel; }
  const Operand* panel(int p) const { return taps_.data() + p * panel_values(); }

  int kernel_ = 3, stride_ = 1;
  Array<Operand> taps_;
  Clamp clamp_;
};

}  // namespace effv2::EFFV2_TARGET
