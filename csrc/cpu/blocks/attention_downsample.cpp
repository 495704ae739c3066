// AttentionDownsample: attention from every second row and column to all positions, beside a strided
// convolution.
//
//   q = q_proj(dw(x));  k, v = kv(x);  P = softmax(q k^T + bias);
//   y = proj(f(P v + local(v))) + conv(x);  dw, local and conv 3x3 with stride 2, f an activation
#include "cpu/tiles/attend.h"
#include "cpu/tiles/convolution.h"
#include "cpu/tiles/scratch.h"
#include "cpu/tiles/typed_block.h"

namespace effv2::EFFV2_TARGET {
namespace {

class AttentionDownsample final : public TypedBlock {
 public:
  explicit AttentionDownsample(const AttentionDownsampleSpec& s)
      : in_(s.in_channels),
        out_(s.out_channels),
        heads_{s.heads, s.key_dim, s.value_dim},
        activation_(s.activation),
        dw_(s.dw.weight, s.dw.bias, in_, 3, 2),
        q_(heads_.key_channels(), in_, Tail::joined),
        kv_((heads_.key_channel_panels() + heads_.value_panels()) * kPanel, in_),
        local_(pack_local(heads_, s.local, 2, s.activation)),
        bias_(s.bias),
        proj_(pack_projection(heads_, s.proj, out_, s.activation)),
        conv_(s.conv.weight, s.conv.bias, out_, in_, 3, 2) {
    const int keys = heads_.key_channels();
    place_rows(s.q, keys, in_, kLog2E, 0, q_);
    place_rows(s.kv, keys, in_, 1, 0, kv_);
    place_values(heads_, rows_from(s.kv, keys, in_), in_, activation_, heads_.query_pitch(), kv_);
  }

  bool output(Map in, Map* out, char* error) const override {
    *out = conv_.output(in);
    return bias_.fits({in.height, in.width}, error);
  }

  std::int64_t multiply_adds(Map in) const override {
    const std::int64_t queries = conv_.output(in).pixels(), keys = in.pixels();
    const std::int64_t key_channels = heads_.key_channels(), values = heads_.value_channels();
    return queries * (std::int64_t{in_} * 9 + key_channels * in_ + values * 9 + values * out_) +
           conv_.multiply_adds(in) + keys * (key_channels + values) * in_ +
           queries * keys * (key_channels + values);
  }

  std::int64_t packed_bytes() const override {
    return dw_.bytes() + q_.bytes() + kv_.bytes() + local_.bytes() + bias_.bytes() + proj_.bytes() +
           conv_.bytes();
  }

  std::int64_t prepared_bytes(Map in) const override {
    return bias_.prepared_bytes({in.height, in.width}, kQueryBlock);
  }
  void prepare(Map in, void* prepared) const override {
    bias_.prepare({in.height, in.width}, kQueryBlock, prepared);
  }
  std::int64_t shared_bytes(Map in) const override {
    return counted([&](Carver& c) { shared(c, in); });
  }
  std::int64_t own_bytes(Map in) const override {
    const std::int64_t project = counted([&](Carver& c) { projecting(c, in); });
    const std::int64_t attend = counted([&](Carver& c) { attending(c, in); });
    return project > attend ? project : attend;
  }

 private:
  // The team's maps; sums: of conv, where the output cannot hold them.
  struct Shared {
    Operand *z, *patches, *queries, *keys, *values, *u, *sums;
  };
  Shared shared(Carver& c, Map in) const {
    const Map out = conv_.output(in);
    const std::int64_t keys = in.pixels(), queries = out.pixels();
    return {c.take<Operand>(queries * in_),
            c.take<Operand>(queries * 9 * in_),
            c.take<Operand>(queries * heads_.query_pitch()),
            c.take<Operand>(heads_.keys_values(static_cast<int>(keys))),
            c.take<Operand>(heads_.value_map(keys)),
            c.take<Operand>(heads_.value_map(queries)),
            c.take<Operand>(converted(out.values()))};
  }
  // What a thread needs to project: x for products to read, and a panel of keys.
  struct Projecting {
    Operand *x, *keys;
  };
  Projecting projecting(Carver& c, Map in) const {
    return {c.take<Operand>(converted(in.values())), c.take<Operand>(in.pixels() * kPanel)};
  }
  // And for a block of queries: their probabilities of one head.
  struct Attending {
    Operand* plane;
    AttentionBias::Own bias;
  };
  Attending attending(Carver& c, Map in) const {
    const Grid keys{in.height, in.width};
    return {c.take<Operand>(std::int64_t{kQueryBlock} * AttentionBias::padded_keys(keys)),
            bias_.own(c, keys, kQueryBlock)};
  }

  void run(const Input& x, Stored* y, Map in, const void* prepared, const Scratch& scratch,
           const Team& team) const override {
    Carver shared_part(scratch.shared), own_part(scratch.own);
    const Shared shared = this->shared(shared_part, in);
    const Map out = conv_.output(in);
    const int queries = static_cast<int>(out.pixels());
    Operand* const sums = staged(y, shared.sums);
    dw_.share(team, x.data, in, shared.z);
    const Range rows = team.share(out.height);
    conv_.gather(x.data, in, rows.begin, rows.end, shared.patches);
    team.sync();
    project_qkv(x.data, in, shared, projecting(own_part, in), team);
    conv_.product().share(team, plain_rows(shared.patches, 9 * in_, 9 * in_, true), queries,
                          Into<Operand>{sums, out_}, proj_.ahead(proj_.first_of_share(team, queries)));
    team.sync();
    attend(in, prepared, shared, scratch, team);
    team.sync();
    proj_.share(team, panel_rows(shared.u, queries, true), queries,
                Into<Stored>{y, out_, kPanel, nullptr, sums}, {});
  }

  void project_qkv(const Stored* x, Map in, const Shared& shared, const Projecting& own,
                   const Team& team) const {
    const int queries = static_cast<int>(conv_.output(in).pixels()), keys = static_cast<int>(in.pixels());
    const Range mine = team.share(kv_.panels());
    q_.share(team, plain_rows(shared.z, in_, in_, true), queries,
             Into<Operand>{shared.queries, heads_.query_pitch()}, kv_.ahead(mine.begin));
    const Operand* const inputs = operands(x, in.values(), own.x);
    const Next to_conv = conv_.product().ahead(conv_.product().first_of_share(team, queries));
    deal(team, kv_.panels(), Parts{1}, [&](Range part, bool follows) {
      const int p = part.begin;
      const Rows rows = plain_rows(inputs, in_, in_, !follows);
      const Next next = p + 1 < mine.end ? kv_.ahead(p + 1) : to_conv;
      const int value = p - heads_.key_channel_panels();
      if (value < 0) {
        kv_.run(p, rows, {0, keys}, into_panel(own.keys), next);
        pack_keys(heads_, own.keys, keys, p, shared.keys);
        return;
      }
      Operand* const map = shared.values + std::int64_t{value} * keys * kPanel;
      local_.prefetch_panel(value);
      kv_.run(p, rows, {0, keys}, into_panel(map), next);
      local_.run_map(value, map, in, kPanel, {0, local_.outputs(in.height)},
                     shared.u + std::int64_t{value} * queries * kPanel, kPanel, kPanel);
    });
  }

  void attend(Map in, const void* prepared, const Shared& shared, const Scratch& scratch,
              const Team& team) const {
    const Grid key_grid{in.height, in.width};
    const int queries = static_cast<int>(conv_.output(in).pixels());
    Carver carver(scratch.own);
    const Attending own = attending(carver, in);
    for_query_blocks(team, queries, [&](int q0, int q1) {
      const Attended block{shared.queries + std::int64_t{q0} * heads_.query_pitch(),
                           q1 - q0,
                           shared.keys,
                           shared.values,
                           key_grid.cells(),
                           shared.u + std::int64_t{q0} * kPanel,
                           queries,
                           true};
      attend_heads(heads_, block, bias_.block(key_grid, q0, q1, prepared, own.bias), own.plane, activation_);
    });
  }

  int in_, out_;
  Heads heads_;
  Activation activation_;
  Depthwise dw_;
  Product q_, kv_;
  Depthwise local_;
  AttentionBias bias_;
  Product proj_;
  Convolution conv_;
};

}  // namespace

Block* make_attention_downsample(const AttentionDownsampleSpec& spec) {
  return new AttentionDownsample(spec);
}

}  // namespace effv2::EFFV2_TARGET
