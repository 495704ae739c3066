// Attention, at half the resolution where the stride is 2; its heads may talk to each other.
//
//   z = dw(x) or x;  q, k, v = qkv(z);  P = softmax(mix1 . (q k^T) + bias);
//   u = (mix2 . P + mix2_bias) v + local(v);  u = enlarged 2x if strided;  y = x + proj(f(u)), f an
//   activation
//
// mix1 and mix2, bias and local may be left out. A block of a few queries sees all keys and all heads at
// once, so the softmax is exact in one pass and its memory grows with the number of keys, not with its
// square; at 7 x 7 it stays in the L1 cache.
#include <cstring>

#include "cpu/tiles/attend.h"
#include "cpu/tiles/resize.h"
#include "cpu/tiles/scratch.h"
#include "cpu/tiles/typed_block.h"

namespace effv2::EFFV2_TARGET {
namespace {

// Pixels of the enlarged map per pass of proj.
constexpr int kEnlargedPixels = 56;

class Attention final : public TypedBlock {
 public:
  explicit Attention(const AttentionSpec& s)
      : channels_(s.in_channels),
        stride_(s.stride),
        has_local_(s.has_local),
        has_mixing_(s.has_mixing),
        activation_(s.activation),
        heads_{s.heads, s.key_dim, s.value_dim},
        qkv_((2 * heads_.key_channel_panels() + heads_.value_panels()) * kPanel, channels_),
        bias_(s.bias),
        proj_(pack_projection(heads_, s.proj, channels_, s.activation)) {
    if (stride_ == 2) dw_ = Depthwise(s.dw.weight, s.dw.bias, channels_, 3, 2);
    if (has_local_) local_ = pack_local(heads_, s.local, 1, activation_);
    if (has_mixing_) pack_mixing(s);
    // The softmax is of powers of two.
    const int keys = heads_.key_channels(), pitch = heads_.query_pitch();
    place_rows(s.qkv, keys, channels_, has_mixing_ ? 1 : kLog2E, 0, qkv_);
    place_rows(rows_from(s.qkv, keys, channels_), keys, channels_, 1, pitch, qkv_);
    place_values(heads_, rows_from(s.qkv, 2 * keys, channels_), channels_, activation_, 2 * pitch, qkv_);
  }

  bool output(Map in, Map* out, char* error) const override {
    *out = in;
    return bias_.fits(tokens(in), error);
  }

  std::int64_t multiply_adds(Map in) const override {
    const std::int64_t n = tokens(in).cells(), keys = heads_.key_channels(), values = heads_.value_channels();
    const std::int64_t depthwise = (stride_ == 2 ? channels_ * 9 : 0) + (has_local_ ? values * 9 : 0);
    const std::int64_t mixing = has_mixing_ ? 2 * heads_.count * heads_.count : 0;
    return n * (depthwise + (2 * keys + values) * channels_) + n * n * (keys + values + mixing) +
           in.pixels() * values * channels_;
  }

  std::int64_t packed_bytes() const override {
    return dw_.bytes() + qkv_.bytes() + local_.bytes() + mix1_.bytes() + mix2_.bytes() + bias_.bytes() +
           proj_.bytes();
  }

  std::int64_t prepared_bytes(Map in) const override { return bias_.prepared_bytes(tokens(in), kQueryBlock); }
  void prepare(Map in, void* prepared) const override { bias_.prepare(tokens(in), kQueryBlock, prepared); }
  std::int64_t shared_bytes(Map in) const override {
    return counted([&](Carver& c) { shared(c, in); });
  }
  std::int64_t own_bytes(Map in) const override {
    std::int64_t most = counted([&](Carver& c) { projecting(c, in); });
    const std::int64_t attend = counted([&](Carver& c) { attending(c, in); });
    const std::int64_t enlarge = stride_ == 2 ? counted([&](Carver& c) { enlarged(c, in); }) : 0;
    if (attend > most) most = attend;
    return enlarge > most ? enlarge : most;
  }

 private:
  // The team's maps.
  struct Shared {
    Operand *z, *queries, *keys, *values, *u;
  };
  Shared shared(Carver& c, Map in) const {
    const std::int64_t n = tokens(in).cells();
    return {c.take<Operand>(stride_ == 2 ? n * channels_ : 0), c.take<Operand>(n * heads_.query_pitch()),
            c.take<Operand>(heads_.keys_values(static_cast<int>(n))), c.take<Operand>(heads_.value_map(n)),
            c.take<Operand>(heads_.value_map(n))};
  }
  // What a thread needs to project: x for products to read, and a panel of keys.
  struct Projecting {
    Operand *x, *keys;
  };
  Projecting projecting(Carver& c, Map in) const {
    return {c.take<Operand>(stride_ == 1 ? converted(in.values()) : 0),
            c.take<Operand>(std::int64_t{tokens(in).cells()} * kPanel)};
  }
  // For a block of queries: a plane of probabilities for each head and one of ones, which mix2's bias is
  // multiplied with, and a column of panels of them; or a plane alone.
  struct Attending {
    Operand *planes, *mixing;
    AttentionBias::Own bias;
  };
  Attending attending(Carver& c, Map in) const {
    const Grid grid = tokens(in);
    const int planes = has_mixing_ ? heads_.count + 1 : 1;
    return {c.take<Operand>(std::int64_t{planes} * kQueryBlock * AttentionBias::padded_keys(grid)),
            c.take<Operand>(std::int64_t{planes} * kPanel), bias_.own(c, grid, kQueryBlock)};
  }
  // Rows of the enlarged map, in panels.
  Operand* enlarged(Carver& c, Map in) const {
    return c.take<Operand>(heads_.value_map(std::int64_t{enlarged_rows(in)} * in.width));
  }

  Grid tokens(Map in) const {
    return {(in.height + stride_ - 1) / stride_, (in.width + stride_ - 1) / stride_};
  }
  static int enlarged_rows(Map in) {
    const int rows = kEnlargedPixels / in.width;
    return rows < 1 ? 1 : rows;
  }
  static std::int64_t value_panel(int p, int n) { return std::int64_t{p} * n * kPanel; }

  void pack_mixing(const AttentionSpec& s) {
    const int count = heads_.count;
    mix1_ = Array<Operand>(std::int64_t{count} * count);
    mix2_ = Array<Operand>(std::int64_t{count} * (count + 1));
    for (int h = 0; h < count; ++h) {
      for (int g = 0; g < count; ++g) {
        mix1_.data()[h * count + g] = static_cast<Operand>(kLog2E * s.mix1_weight[h * count + g]);
        mix2_.data()[h * (count + 1) + g] = static_cast<Operand>(s.mix2.weight[h * count + g]);
      }
      mix2_.data()[h * (count + 1) + count] = static_cast<Operand>(s.mix2.bias[h]);
    }
  }

  void run(const Input& x, Stored* y, Map in, const void* prepared, const Scratch& scratch,
           const Team& team) const override {
    Carver shared_part(scratch.shared);
    const Shared shared = this->shared(shared_part, in);
    const Grid grid = tokens(in);
    {
      Carver own_part(scratch.own);
      const Projecting own = projecting(own_part, in);
      const Operand* z = shared.z;
      if (stride_ == 2) {
        dw_.share(team, x.data, in, shared.z);
        team.sync();
      } else {
        z = operands(x.data, in.values(), own.x);
      }
      project_qkv(z, grid, shared, own, team);
    }
    team.sync();
    attend(in, prepared, shared, scratch, team);
    team.sync();
    if (stride_ == 2) {
      Carver own_part(scratch.own);
      project_enlarged(shared.u, x.data, y, in, enlarged(own_part, in), team);
    } else {
      proj_.share(team, panel_rows(shared.u, grid.cells(), true), grid.cells(),
                  Into<Stored>{y, channels_, kPanel, x.data}, {});
    }
  }

  void project_qkv(const Operand* z, Grid grid, const Shared& shared, const Projecting& own,
                   const Team& team) const {
    const int n = grid.cells(), key_panels = heads_.key_channel_panels();
    const Map size{grid.rows, grid.cols, kPanel};
    const Range mine = team.share(qkv_.panels());
    const Next to_proj = proj_.ahead(stride_ == 1 ? proj_.first_of_share(team, n) : 0);
    deal(team, qkv_.panels(), Parts{1}, [&](Range part, bool follows) {
      const int p = part.begin;
      const Rows rows = plain_rows(z, channels_, channels_, !follows);
      const Next next = p + 1 < mine.end ? qkv_.ahead(p + 1) : to_proj;
      if (p < key_panels) {
        qkv_.run(p, rows, {0, n}, Into<Operand>{shared.queries, heads_.query_pitch()}, next);
      } else if (p < 2 * key_panels) {
        qkv_.run(p, rows, {0, n}, into_panel(own.keys), next);
        pack_keys(heads_, own.keys, n, p - key_panels, shared.keys);
      } else {
        const int value = p - 2 * key_panels;
        Operand* const map = shared.values + value_panel(value, n);
        if (has_local_) local_.prefetch_panel(value);
        qkv_.run(p, rows, {0, n}, into_panel(map), next);
        if (!has_local_) return;
        local_.run_map(value, map, size, kPanel, {0, grid.rows}, shared.u + value_panel(value, n), kPanel,
                       kPanel);
      }
    });
  }

  void attend(Map in, const void* prepared, const Shared& shared, const Scratch& scratch,
              const Team& team) const {
    const Grid grid = tokens(in);
    const int keys = grid.cells();
    Carver carver(scratch.own);
    const Attending own = attending(carver, in);
    // A map that is enlarged first is activated behind that.
    const Activation activation = stride_ == 1 ? activation_ : Activation::none;
    for_query_blocks(team, keys, [&](int q0, int q1) {
      const Attended block{shared.queries + std::int64_t{q0} * heads_.query_pitch(),
                           q1 - q0,
                           shared.keys,
                           shared.values,
                           keys,
                           shared.u + std::int64_t{q0} * kPanel,
                           keys,
                           has_local_};
      const AttentionBias::Block bias = bias_.block(grid, q0, q1, prepared, own.bias);
      if (has_mixing_) {
        attend_mixed(block, bias, own, activation);
      } else {
        attend_heads(heads_, block, bias, own.planes, activation);
      }
    });
  }

  void attend_mixed(const Attended& a, const AttentionBias::Block& bias, const Attending& own,
                    Activation activation) const {
    const int count = heads_.count, pitch = a.pitch();
    const std::int64_t plane = std::int64_t{a.query_count} * pitch;
    for (int h = 0; h < count; ++h) logits(heads_, h, a, own.planes + h * plane, nullptr);
    mix(mix1_, count, own, plane, &bias);
    for (std::int64_t row = 0; row < std::int64_t{count} * a.query_count; ++row) {
      softmax_row(own.planes + row * pitch, pitch);
    }
    for (std::int64_t i = 0; i < plane; i += kLanes) store(own.planes + count * plane + i, set1(1.0f));
    mix(mix2_, count + 1, own, plane, nullptr);
    for (int h = 0; h < count; ++h) weigh_values(heads_, h, a, own.planes + h * plane, activation);
  }

  // planes[h] = sum_g weights[h, g] planes[g] (+ bias[h]), in place, so that they stay in the near cache. A
  // tile reads all planes before it writes; what needs several tiles reads a copy.
  void mix(const Array<Operand>& weights, int inputs, const Attending& own, std::int64_t plane,
           const AttentionBias::Block* bias) const {
    const Rows rows = plain_rows(weights.data(), inputs, inputs);
    for (std::int64_t column = 0; column < plane; column += kPanel) {
      Result<Operand> r{own.planes + column, plane};
      if (plane - column < kPanel) r.columns = static_cast<int>(plane - column);
      if (bias) {
        r.residual = bias->data + column;
        r.residual_stride = bias->head_stride;
      }
      Panel<Operand> in{own.planes + column, plane};
      if (heads_.count > kTileRows) {
        // Whole panels, in registers: what of the last one lies behind its plane is not looked at.
        for (int g = 0; g < inputs; ++g) {
          std::memcpy(own.mixing + g * kPanel, in.below(g).data, kPanel * sizeof(Operand));
        }
        in = {own.mixing};
      }
      gemm(rows, 0, heads_.count, in, inputs, r);
    }
  }

  void project_enlarged(const Operand* u, const Stored* x, Stored* y, Map in, Operand* own,
                        const Team& team) const {
    const Grid grid = tokens(in);
    const int n = grid.cells(), step = enlarged_rows(in);
    const Clamp clamp = clamp_of(activation_);
    // Shared out by pixels: a row that belongs to two threads is enlarged by both.
    const auto size = [&](Range left, bool alone) {
      const int most = (left.begin / in.width + step) * in.width - left.begin;
      return Parts{most, kTileRows}(left, alone);
    };
    deal(team, static_cast<int>(in.pixels()), size, [&](Range part, bool) {
      const int begin = part.begin, end = part.end, top = begin / in.width;
      const int bottom = (end + in.width - 1) / in.width, rows_pixels = (bottom - top) * in.width;
      const int skip = begin - top * in.width, pixels = end - begin;
      for (int p = 0; p < heads_.value_panels(); ++p) {
        const Operand* map = u + value_panel(p, n);
        Operand* const panel = own + std::int64_t{p} * rows_pixels * kPanel;
        for (int row = top; row < bottom; ++row) {
          const Blend blend = blend_at(row, grid.rows);
          enlarge_row(map + std::int64_t{blend.a} * grid.cols * kPanel,
                      map + std::int64_t{blend.b} * grid.cols * kPanel, blend.t, grid.cols,
                      panel + std::int64_t{row - top} * in.width * kPanel, in.width);
        }
        Operand* const values = panel + std::int64_t{skip} * kPanel;
        if (clamp.any) apply(values, std::int64_t{pixels} * kPanel, clamp);
        activate(activation_, values, std::int64_t{pixels} * kPanel);
      }
      const std::int64_t offset = std::int64_t{top} * in.width * channels_;
      proj_.run(panel_rows(own, rows_pixels), {skip, skip + pixels},
                Into<Stored>{y + offset, channels_, kPanel, x + offset}, {});
    });
  }

  int channels_, stride_;
  bool has_local_, has_mixing_;
  Activation activation_;
  Heads heads_;
  Product qkv_;
  Depthwise dw_, local_;
  Array<Operand> mix1_, mix2_;
  AttentionBias bias_;
  Product proj_;
};

}  // namespace

Block* make_attention(const AttentionSpec& spec) { return new Attention(spec); }

}  // namespace effv2::EFFV2_TARGET
