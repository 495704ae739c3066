// Stem: y = f(conv2(f(conv1(x)))), both 3x3 with stride 2, f an activation.
//
// A few output rows at a time: the rows of the first convolution that they need stay in the cache.
#include <cstring>

#include "cpu/tiles/activation.h"
#include "cpu/tiles/convolution.h"
#include "engine/hand.h"

namespace effv2::EFFV2_TARGET {
namespace {

constexpr int kGroup = 4;  // output rows per pass

class Stem final : public TypedBlock {
 public:
  explicit Stem(const StemSpec& s)
      : activation_(s.activation),
        conv1_(s.conv1.weight, s.conv1.bias, s.mid_channels, s.in_channels, 3, 2,
               {before(s.activation), before(s.activation)}),
        conv2_(s.conv2.weight, s.conv2.bias, s.out_channels, s.mid_channels, 3, 2,
               {after(s.activation) * before(s.activation), before(s.activation)}) {
    conv1_.set_clamp(clamp_of(activation_));
    conv2_.set_clamp(clamp_of(activation_));
  }

  bool output(Map in, Map* out, char*) const override {
    *out = conv2_.output(conv1_.output(in));
    return true;
  }
  bool takes_strides() const override { return true; }
  std::int64_t multiply_adds(Map in) const override {
    return conv1_.multiply_adds(in) + conv2_.multiply_adds(conv1_.output(in));
  }
  std::int64_t packed_bytes() const override { return conv1_.bytes() + conv2_.bytes(); }
  std::int64_t own_bytes(Map in) const override {
    return counted([&](Carver& c) { own(c, in); });
  }

 private:
  // What a thread needs for a group of rows: those of the image and of the first convolution, with their
  // margins, and a row of results.
  struct Own {
    Operand *strip, *mid, *results;
  };
  Own own(Carver& c, Map in) const {
    const Map mid = conv1_.output(in), out = conv2_.output(mid);
    return {c.take<Operand>((4 * kGroup + 3) * conv1_.pitch(in.width)),
            c.take<Operand>((2 * kGroup + 1) * conv2_.pitch(mid.width)),
            c.take<Operand>(converted(std::int64_t{out.width} * out.channels))};
  }

  void run(const Input& x, Stored* y, Map in, const void*, const Scratch& scratch,
           const Team& team) const override {
    const Map mid = conv1_.output(in), out = conv2_.output(mid);
    const std::int64_t mid_pitch = conv2_.pitch(mid.width);
    const std::int64_t row_values = std::int64_t{out.width} * out.channels;
    Carver carver(scratch.own);
    const Own own = this->own(carver, in);

    int before = 0;  // rows of the group before
    deal(team, out.height, Parts{kGroup}, [&](Range rows, bool follows) {
      const int row = rows.begin, group = rows.end - row;
      // mid holds the rows that the group needs; the first is the last of the group before.
      Range needed = conv2_.reach(row, row + group);
      Operand* fill = own.mid;
      if (follows) {
        std::memcpy(own.mid, own.mid + 2 * before * mid_pitch, mid_pitch * sizeof(Operand));
        ++needed.begin;
        fill += mid_pitch;
      }
      mid_rows(x, in, needed, own.strip, fill);
      for (int i = 0; i < group; ++i) {
        Stored* const to = y + (row + i) * row_values;
        Operand* const results = staged(to, own.results);
        conv2_.run_row(own.mid + 2 * i * mid_pitch, mid.width, results, out.width);
        activate<true>(activation_, results, row_values);
        commit(results, row_values, to);
      }
      before = group;
    });
  }

  // Rows of the first convolution, padded by a zero pixel at both ends; rows outside of the map are zero.
  void mid_rows(const Input& x, Map in, Range rows, Operand* strip, Operand* out) const {
    const Map mid = conv1_.output(in);
    const std::int64_t in_pitch = conv1_.pitch(in.width), pitch = conv2_.pitch(mid.width);
    const Range inside{rows.begin < 0 ? 0 : rows.begin, rows.end > mid.height ? mid.height : rows.end};
    conv1_.pad_rows(x, in, conv1_.reach(inside.begin, inside.end), strip);
    for (int r = rows.begin; r < rows.end; ++r, out += pitch) {
      if (r < 0 || r >= mid.height) {
        std::memset(out, 0, pitch * sizeof(Operand));
        continue;
      }
      const int margin = mid.channels;
      std::memset(out, 0, margin * sizeof(Operand));
      std::memset(out + pitch - margin, 0, margin * sizeof(Operand));
      conv1_.run_row(strip + 2 * (r - inside.begin) * in_pitch, in.width, out + margin, mid.width);
      activate(activation_, out + margin, static_cast<std::int64_t>(mid.width) * margin);
    }
  }

  Activation activation_;
  Convolution conv1_, conv2_;
};

}  // namespace

Block* make_stem(const StemSpec& spec) { return new Stem(spec); }

}  // namespace effv2::EFFV2_TARGET
