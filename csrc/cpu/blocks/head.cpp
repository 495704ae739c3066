// Head: logits = weight . mean_{H, W}(x) + bias.
#include "cpu/tiles/gemm.h"
#include "cpu/tiles/pack.h"
#include "engine/spec.h"

namespace effv2::EFFV2_ISA {
namespace {

class Head final : public Block {
 public:
  explicit Head(const HeadSpec& s)
      : channels_(s.in_channels),
        linear_(s.linear.weight, s.linear.bias, s.classes, s.in_channels, 0, {}, Tail::joined) {}

  bool output(Map, Map* out, char*) const override {
    *out = {1, 1, linear_.outputs()};
    return true;
  }
  std::int64_t multiply_adds(Map) const override {
    return static_cast<std::int64_t>(channels_) * linear_.outputs();
  }
  std::int64_t packed_bytes() const override { return linear_.bytes(); }
  std::int64_t shared_floats(Map) const override { return 0; }
  std::int64_t own_floats(Map) const override { return round_up(channels_, kPanel); }

  void run(const MapView& x, float* y, Map in, const float*, const Scratch& scratch,
           const Team& team) const override {
    // Every thread needs the whole mean, and the map is small: each computes it.
    mean(x.data, in, scratch.own);
    const Rows row = plain_rows(scratch.own, 0, channels_);
    const Range panels = team.share(linear_.panels());
    for (int p = panels.begin; p < panels.end; ++p) {
      Result r{y + p * kPanel, 0, linear_.panel_bias(p)};
      r.columns = linear_.columns(p);
      gemm(row, 0, 1, linear_.panel(p), channels_, r, linear_.ahead(p + 1));
    }
  }

 private:
  // Row sums first: their error grows with the sides of the map, not with its area.
  void mean(const float* x, Map in, float* out) const {
    const Vec scale = set1(1.0f / static_cast<float>(in.pixels()));
    for (int c = 0; c < channels_; c += kLanes) {
      const int count = channels_ - c < kLanes ? channels_ - c : kLanes;
      Vec total = zero();
      const float* p = x + c;
      for (int row = 0; row < in.height; ++row) {
        Vec sum = zero();
        for (int column = 0; column < in.width; ++column, p += channels_) {
          sum = add(sum, count == kLanes ? load(p) : load_n(p, count));
        }
        total = add(total, sum);
      }
      store(out + c, mul(total, scale));
    }
  }

  int channels_;
  PackedMatrix linear_;
};

}  // namespace

Block* make_head(const HeadSpec& spec) { return new Head(spec); }

}  // namespace effv2::EFFV2_ISA
