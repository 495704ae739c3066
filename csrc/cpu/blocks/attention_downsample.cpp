// AttentionDownsample: attention from every second row and column to all positions, beside a strided
// convolution.
//
//   q = q_proj(dw(x));  k, v = kv(x);  P = softmax(q k^T + bias);
//   y = proj(GELU(P v + local(v))) + conv(x);  dw, local and conv 3x3 with stride 2
#include "cpu/tiles/attend.h"
#include "cpu/tiles/conv3x3.h"

namespace effv2::EFFV2_ISA {
namespace {

constexpr int kQueryBlock = kTileRows < 12 ? 12 : kTileRows;

class AttentionDownsample final : public Block {
 public:
  explicit AttentionDownsample(const AttentionDownsampleSpec& s)
      : in_(s.in_channels),
        out_(s.out_channels),
        heads_{s.heads, s.key_dim, s.value_dim},
        key_panels_(panels_of(heads_.key_channels())),
        dw_(pack_depthwise(s.dw.weight, s.dw.bias, in_)),
        q_(heads_.key_channels(), in_, in_, Tail::joined),
        kv_((key_panels_ + heads_.value_panels()) * kPanel, in_, in_),
        local_(pack_local(heads_, s.local.weight, s.local.bias)),
        bias_(s.bias),
        proj_(pack_projection(heads_, s.proj.weight, s.proj.bias, out_)),
        conv_(pack_conv3x3(s.conv.weight, s.conv.bias, out_, in_)) {
    const int key_channels = heads_.key_channels();
    for (int c = 0; c < key_channels; ++c) {
      for (int k = 0; k < in_; ++k) q_.at(c, k) = kLog2E * s.q.weight[std::int64_t{c} * in_ + k];
      q_.bias()[c] = kLog2E * s.q.bias[c];
      for (int k = 0; k < in_; ++k) kv_.at(c, k) = s.kv.weight[std::int64_t{c} * in_ + k];
      kv_.bias()[c] = s.kv.bias[c];
    }
    place_values(heads_, s.kv.weight + std::int64_t{key_channels} * in_, s.kv.bias + key_channels, in_,
                 key_panels_, kv_);
  }

  bool output(Map in, Map* out, char* error) const override {
    const Grid queries = halved(in);
    *out = {queries.rows, queries.cols, out_};
    return bias_.fits({in.height, in.width}, error);
  }

  std::int64_t multiply_adds(Map in) const override {
    const std::int64_t queries = halved(in).cells(), keys = in.pixels();
    const std::int64_t key_channels = heads_.key_channels();
    const std::int64_t values = std::int64_t{heads_.count} * heads_.value_dim;
    return queries * (std::int64_t{in_} * 9 + key_channels * in_ + values * 9 + values * out_ +
                      std::int64_t{in_} * 9 * out_) +
           keys * (key_channels + values) * in_ + queries * keys * (key_channels + values);
  }

  std::int64_t packed_bytes() const override {
    return q_.bytes() + kv_.bytes() + proj_.bytes() + conv_.bytes() + bias_.bytes() +
           (dw_.floats() + local_.floats()) * 4;
  }

  std::int64_t prepared_floats(Map in) const override { return bias_.prepared_floats({in.height, in.width}); }
  void prepare(Map in, float* prepared) const override { bias_.prepare({in.height, in.width}, prepared); }

  std::int64_t shared_floats(Map in) const override { return Layout(*this, in).end; }
  std::int64_t own_floats(Map in) const override {
    const Grid keys{in.height, in.width};
    const std::int64_t attend = std::int64_t{kQueryBlock} * AttentionBias::padded_keys(keys) +
                                bias_.scratch_floats(keys, kQueryBlock);
    const std::int64_t key_panel = in.pixels() * kPanel;
    return attend > key_panel ? attend : key_panel;
  }

  void run(const MapView& x, float* y, Map in, const float* prepared, const Scratch& scratch,
           const Team& team) const override {
    const Layout at(*this, in);
    const Grid grid = halved(in);
    strided_depthwise(x.data, in, dw_, scratch.shared + at.z, team);
    const Range rows = team.share(grid.rows);
    gather_patches(x.data, in, rows.begin, rows.end, scratch.shared + at.patches);
    team.sync();
    project_qkv(x.data, in, grid, at, scratch, team);
    const int queries = grid.cells();
    const Next to_proj = proj_.ahead(first_panel(team, proj_.shares(), queries));
    share_panels(team, conv_.shares(), queries, [&](PanelPart part) {
      const int p = part.panel;
      Result r{y + p * kPanel, out_, conv_.panel_bias(p)};
      r.columns = conv_.columns(p);
      gemm(plain_rows(scratch.shared + at.patches, 9 * in_, 9 * in_, part.first), part.row_begin,
           part.row_end, conv_.panel(p), 9 * in_, r, part.last ? to_proj : conv_.ahead(p + 1));
    });
    team.sync();
    attend(in, grid, prepared, at, scratch, team);
    team.sync();
    share_panels(team, proj_.shares(), queries, [&](PanelPart part) {
      const int p = part.panel;
      Result r{y + p * kPanel, out_, proj_.panel_bias(p)};
      r.columns = proj_.columns(p);
      r.accumulate = true;
      gemm(panel_rows(scratch.shared + at.u, queries, part.first), part.row_begin, part.row_end,
           proj_.panel(p), proj_.depth(), r, part.last ? Next{} : proj_.ahead(p + 1));
    });
  }

 private:
  struct Layout {
    Layout(const AttentionDownsample& a, Map in) {
      const std::int64_t keys = in.pixels(), queries = halved(in).cells();
      z = 0;
      patches = z + aligned_floats(queries * a.in_);
      this->queries = patches + aligned_floats(queries * 9 * a.in_);
      this->keys = this->queries + aligned_floats(queries * a.heads_.key_channels());
      values = this->keys + aligned_floats(a.heads_.keys_floats(static_cast<int>(keys)));
      u = values + keys * a.heads_.value_panels() * kPanel;
      end = u + queries * a.heads_.value_panels() * kPanel;
    }
    std::int64_t z, patches, queries, keys, values, u, end;
  };

  static Grid halved(Map in) { return {(in.height + 1) / 2, (in.width + 1) / 2}; }

  void project_qkv(const float* x, Map in, Grid grid, const Layout& at, const Scratch& scratch,
                   const Team& team) const {
    const int queries = grid.cells(), keys = static_cast<int>(in.pixels());
    const Range mine = team.share(kv_.panels());
    share_panels(team, q_.shares(), queries, [&](PanelPart part) {
      const int p = part.panel;
      Result r{scratch.shared + at.queries + p * kPanel, heads_.key_channels(), q_.panel_bias(p)};
      r.columns = q_.columns(p);
      gemm(plain_rows(scratch.shared + at.z, in_, in_, part.first), part.row_begin, part.row_end, q_.panel(p),
           in_, r, part.last ? kv_.ahead(mine.begin) : q_.ahead(p + 1));
    });
    const Next to_conv = conv_.ahead(first_panel(team, conv_.shares(), queries));
    for (int p = mine.begin; p < mine.end; ++p) {
      const Rows rows = plain_rows(x, in_, in_, p == mine.begin);
      const int value = p - key_panels_;
      Result r{scratch.own, kPanel, kv_.panel_bias(p)};
      if (value >= 0) r.out = scratch.shared + at.values + std::int64_t{value} * keys * kPanel;
      if (value >= 0) prefetch_taps(depthwise_panel(local_, value));
      gemm(rows, 0, keys, kv_.panel(p), in_, r, p + 1 < mine.end ? kv_.ahead(p + 1) : to_conv);
      if (value >= 0) {
        depthwise_map<2>(r.out, in.height, in.width, kPanel, depthwise_panel(local_, value),
                         scratch.shared + at.u + std::int64_t{value} * queries * kPanel, kPanel, kPanel);
      } else {
        const int first = p * kPanel, left = heads_.key_channels() - first;
        pack_keys(heads_, r.out, keys, first, left < kPanel ? left : kPanel, scratch.shared + at.keys);
      }
    }
  }

  void attend(Map in, Grid grid, const float* prepared, const Layout& at, const Scratch& scratch,
              const Team& team) const {
    const Grid key_grid{in.height, in.width};
    const int queries = grid.cells(), keys = key_grid.cells(), pitch = AttentionBias::padded_keys(key_grid);
    float* own_bias = scratch.own + std::int64_t{kQueryBlock} * pitch;
    const Range mine = team.share(queries);
    const int blocks = (mine.end - mine.begin + kQueryBlock - 1) / kQueryBlock;
    for (int b = 0; b < blocks; ++b) {
      const Range part = split(mine.end - mine.begin, b, blocks);
      const int q0 = mine.begin + part.begin, n = part.end - part.begin;
      const AttentionBias::Block bias = bias_.block(key_grid, q0, q0 + n, prepared, own_bias);
      for (int h = 0; h < heads_.count; ++h) {
        logits(heads_, h, scratch.shared + at.queries + std::int64_t{q0} * heads_.key_channels(), n,
               scratch.shared + at.keys, keys, scratch.own, bias.data + h * bias.head_stride);
        for (int i = 0; i < n; ++i) softmax_row(scratch.own + std::int64_t{i} * pitch, pitch);
        weigh_values(heads_, h, scratch.own, pitch, n, scratch.shared + at.values, keys,
                     scratch.shared + at.u + std::int64_t{q0} * kPanel, queries, true);
      }
    }
  }

  int in_, out_;
  Heads heads_;
  int key_panels_;
  Buffer dw_;
  PackedMatrix q_, kv_;
  Buffer local_;
  AttentionBias bias_;
  PackedMatrix proj_, conv_;
};

}  // namespace

Block* make_attention_downsample(const AttentionDownsampleSpec& spec) {
  return new AttentionDownsample(spec);
}

}  // namespace effv2::EFFV2_ISA
