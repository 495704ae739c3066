// Conv: y = activation(conv(x)), a window of any odd size, with stride 1 or 2.
#include "cpu/tiles/convolution.h"

#include "cpu/tiles/activation.h"
#include "engine/hand.h"

namespace effv2::EFFV2_TARGET {
namespace {

constexpr int kPixels = 256;  // of a product at a time
constexpr int kGroup = 8;     // rows whose windows are copied at a time

class Conv final : public TypedBlock {
 public:
  explicit Conv(const ConvSpec& s)
      : activation_(s.activation),
        pointwise_(s.kernel == 1 && s.stride == 1),
        conv_(s.conv.weight, s.conv.bias, s.out_channels, s.in_channels, s.kernel, s.stride,
              {before(s.activation), before(s.activation)}) {
    conv_.set_clamp(clamp_of(activation_));
  }

  bool output(Map in, Map* out, char*) const override {
    *out = conv_.output(in);
    return true;
  }
  // Rows are copied in any case, unless they are what the product reads.
  bool takes_strides() const override { return !pointwise_; }
  std::int64_t multiply_adds(Map in) const override { return conv_.multiply_adds(in); }
  std::int64_t packed_bytes() const override { return conv_.bytes(); }
  std::int64_t own_bytes(Map in) const override {
    return pointwise_ ? counted([&](Carver& c) { pixels(c, in); })
                      : counted([&](Carver& c) { strip(c, in); });
  }

 private:
  // What a thread needs: the rows of some windows with their margins, and a row of results.
  struct Strip {
    Operand *rows, *results;
  };
  Strip strip(Carver& c, Map in) const {
    const Map out = conv_.output(in);
    const Range windows = conv_.reach(0, out.height < kGroup ? out.height : kGroup);
    return {c.take<Operand>((windows.end - windows.begin) * conv_.pitch(in.width)),
            c.take<Operand>(converted(std::int64_t{out.width} * out.channels))};
  }
  // Where a window is a pixel: some pixels, and their results.
  struct Pixels {
    Operand *inputs, *results;
  };
  Pixels pixels(Carver& c, Map in) const {
    const std::int64_t most = by_pixels(in) && in.pixels() > kPixels ? kPixels : in.pixels();
    return {c.take<Operand>(converted(most * in.channels)),
            c.take<Operand>(converted(most * conv_.outputs()))};
  }

  void run(const Input& x, Stored* y, Map in, const void*, const Scratch& scratch,
           const Team& team) const override {
    Carver own(scratch.own);
    if (!pointwise_) {
      run_rows(x, y, in, strip(own, in), team);
    } else if (by_pixels(in)) {
      run_pixels(x.data, y, in, pixels(own, in), team);
    } else {
      const Operand* rows = operands(x.data, in.values(), pixels(own, in).inputs);
      conv_.product().share(team, plain_rows(rows, in.channels, in.channels, true),
                            static_cast<int>(in.pixels()), Into<Stored>{y, conv_.outputs()}, {});
    }
  }

  void run_rows(const Input& x, Stored* y, Map in, const Strip& own, const Team& team) const {
    const Map out = conv_.output(in);
    const std::int64_t row_values = std::int64_t{out.width} * out.channels;
    const std::int64_t step = conv_.stride() * conv_.pitch(in.width);
    deal(team, out.height, Parts{kGroup}, [&](Range part, bool) {
      const int top = part.begin, bottom = part.end;
      conv_.pad_rows(x, in, conv_.reach(top, bottom), own.rows);
      for (int row = top; row < bottom; ++row) {
        Stored* const to = y + row * row_values;
        Operand* const results = staged(to, own.results);
        // The row behind it is written next: it arrives meanwhile.
        const Next next{to + row_values,
                        row + 1 < out.height ? row_values * std::int64_t{sizeof(Stored)} : 0};
        conv_.run_row(own.rows + (row - top) * step, in.width, results, out.width, next);
        activate<true>(activation_, results, row_values);
        commit(results, row_values, to);
      }
    });
  }

  void run_pixels(const Stored* x, Stored* y, Map in, const Pixels& own, const Team& team) const {
    const int inputs = in.channels, outputs = conv_.outputs();
    deal(team, static_cast<int>(in.pixels()), Parts{kPixels, kTileRows}, [&](Range part, bool) {
      const int begin = part.begin, count = part.end - begin;
      const std::int64_t results = std::int64_t{count} * outputs;
      const Operand* rows =
          operands(x + std::int64_t{begin} * inputs, std::int64_t{count} * inputs, own.inputs);
      Stored* const to = y + std::int64_t{begin} * outputs;
      Operand* const made = staged(to, own.results);
      conv_.product().run(plain_rows(rows, inputs, inputs), {0, count}, Into<Operand>{made, outputs}, {});
      activate<true>(activation_, made, results);
      commit(made, results, to);
    });
  }
  // Many pixels are shared out by pixels, many weights by panels; activations that are no clamps take whole
  // pixels.
  bool by_pixels(Map in) const {
    const bool whole_pixels = activation_ != Activation::none && !clamp_of(activation_).any;
    return whole_pixels || in.pixels() >= conv_.outputs();
  }

  Activation activation_;
  bool pointwise_;
  Convolution conv_;
};

}  // namespace

Block* make_conv(const ConvSpec& spec) { return new Conv(spec); }

}  // namespace effv2::EFFV2_TARGET
