// FFN, a bottleneck: y = [x +] fc2(f(dw(f(fc1(x))))), dw depthwise with stride 1 or 2, f an activation; fc1
// may be left out.
//
// The hidden activation exists only as slices that stay in the cache: a band of rows times a chunk of
// channels. One panel of channels at a time goes through fc1 + f into a small private map, from there through
// dw + f into the chunk, and the chunk is multiplied by its part of fc2 at once. Without fc1 the map is x.
//
// Large maps: threads walk the rows band by band; the last rows of fc1's output are kept, so that the next
// band does not compute them again. Small maps: the whole map is one band, and the threads meet once per
// chunk, whose panels they divide, and where these are few their rows as well.
#include <cstring>

#include "cpu/tiles/depthwise.h"
#include "cpu/tiles/product.h"
#include "cpu/tiles/scratch.h"
#include "cpu/tiles/typed_block.h"
#include "engine/hand.h"

namespace effv2::EFFV2_TARGET {
namespace {

// A map of at most this many pixels is one band: 16 x 16 pixels x one panel is 16 KB on AVX2.
constexpr int kWholePixels = 256;
// Pixels of fc1's output per panel in a band: they should stay in the L1 cache.
constexpr int kBandPixels = 336;
constexpr int kMostBandRows = 32;
constexpr int kMostHiddenRows = (kMostBandRows - 1) * 2 + Depthwise::kLargestKernel;
// Channels of one chunk; a multiple of kDepthBlock, so that sums do not depend on chunks.
constexpr int kChunk = 256;
static_assert(kChunk % kDepthBlock == 0 && kChunk % kPanel == 0);
constexpr int kChunkPanels = kChunk / kPanel;
// A map that is one band has larger chunks, as long as they stay in the L2 caches of the team: threads meet
// once per chunk.
constexpr int kSharedChunkValues = 1 << 16;
constexpr int kLargeTeam = 8;  // from here on it has no larger ones

class Ffn final : public TypedBlock {
 public:
  explicit Ffn(const FfnSpec& s)
      : expands_(s.expands),
        residual_(s.residual),
        in_(s.in_channels),
        hidden_(s.hidden),
        out_(s.out_channels),
        panels_(panels_of(hidden_)),
        activation_(s.activation),
        dw_(s.dw.weight, s.dw.bias, hidden_, s.kernel, s.stride,
            {expands_ ? after(s.activation) * before(s.activation) : before(s.activation),
             before(s.activation)}),
        fc2_(s.fc2.weight, s.fc2.bias, out_, hidden_, panels_ * kPanel, {after(s.activation), 1},
             Tail::joined) {
    if (expands_) {
      const Scale scale{before(activation_), before(activation_)};
      fc1_ = Product(s.fc1.weight, s.fc1.bias, hidden_, in_, in_, scale, Tail::separate);
      fc1_.set_clamp(clamp_of(activation_));
    }
    dw_.set_clamp(clamp_of(activation_));
  }

  bool output(Map in, Map* out, char*) const override {
    *out = size_of_output(in);
    return true;
  }
  std::int64_t multiply_adds(Map in) const override {
    const std::int64_t behind = dw_.kernel() * dw_.kernel() + out_;
    return hidden_ * ((expands_ ? in.pixels() * in_ : 0) + size_of_output(in).pixels() * behind);
  }
  std::int64_t packed_bytes() const override { return fc1_.bytes() + fc2_.bytes() + dw_.bytes(); }

  std::int64_t shared_bytes(Map in) const override {
    std::int64_t most = 0;
    for (int threads = 1; whole(in) && threads <= kLargeTeam; ++threads) {
      const std::int64_t bytes = counted([&](Carver& c) { shared(c, in, threads); });
      if (bytes > most) most = bytes;
    }
    return most;
  }
  std::int64_t own_bytes(Map in) const override {
    return whole(in) ? counted([&](Carver& c) { own(c, in); }) : counted([&](Carver& c) { band(c, in); });
  }

 private:
  // What a team shares of a map that is one band.
  struct Shared {
    Operand* sums;    // parts of fc2's, where the output cannot hold them
    Operand* chunks;  // two in turn
  };
  Shared shared(Carver& c, Map in, int threads) const {
    return {c.take<Operand>(chunks(in, 1) > 1 ? converted(size_of_output(in).values()) : 0),
            c.take<Operand>((chunks(in, threads) > 1 ? 2 : 1) * chunk_values(in, threads))};
  }
  // What a thread has of its own then: a panel of the hidden map.
  struct Own {
    Operand *x, *hidden;
  };
  Own own(Carver& c, Map in) const {
    return {c.take<Operand>(expands_ ? converted(in.values()) : 0),
            c.take<Operand>(expands_ ? in.pixels() * kPanel : 0)};
  }
  // What it needs to walk a large map: rows of x and of a panel of the hidden map, those kept of every panel,
  // the chunk, and parts of fc2's sums.
  struct Band {
    Operand *x, *hidden, *kept, *chunk, *sums;
  };
  Band band(Carver& c, Map in) const {
    const int rows = band_rows(in);
    const std::int64_t hidden = std::int64_t{in.width} * dw_.reach(rows);
    const std::int64_t pixels = std::int64_t{size_of_output(in).width} * rows;
    return {c.take<Operand>(expands_ ? converted(hidden * in_) : 0),
            c.take<Operand>(expands_ ? hidden * kPanel : 0),
            c.take<Operand>(std::int64_t{in.width} * kept_rows() * kPanel * panels_),
            c.take<Operand>(pixels * kPanel * chunk_panels(in, 1)),
            c.take<Operand>(converted(pixels * out_))};
  }

  Map size_of_output(Map in) const { return {dw_.outputs(in.height), dw_.outputs(in.width), out_}; }
  static bool whole(Map in) { return in.pixels() <= kWholePixels; }
  int chunk_panels(Map in, int threads) const {
    const int caches = threads < 2 ? 1 : (threads < kLargeTeam ? threads : kLargeTeam) / 2;
    const int whole_chunks =
        whole(in) ? static_cast<int>(kSharedChunkValues * caches / in.pixels() / kChunk) : 1;
    const int most = whole_chunks > 1 ? whole_chunks * kChunkPanels : kChunkPanels;
    return panels_ < most ? panels_ : most;
  }
  std::int64_t chunk_values(Map in, int threads) const {
    return in.pixels() * kPanel * chunk_panels(in, threads);
  }
  int chunks(Map in, int threads) const {
    return (panels_ + chunk_panels(in, threads) - 1) / chunk_panels(in, threads);
  }
  int band_rows(Map in) const {
    const int rows = (kBandPixels / in.width - dw_.kernel()) / dw_.stride() + 1;
    return rows < 1 ? 1 : rows > kMostBandRows ? kMostBandRows : rows;
  }
  // Of the hidden map: those that one band and the next one need.
  int kept_rows() const { return expands_ && dw_.kernel() > dw_.stride() ? dw_.kernel() - dw_.stride() : 0; }

  void run(const Input& x, Stored* y, Map in, const void*, const Scratch& scratch,
           const Team& team) const override {
    Carver shared_part(scratch.shared), own_part(scratch.own);
    if (whole(in)) {
      run_whole(x.data, y, in, shared(shared_part, in, team.size), own(own_part, in), team);
    } else {
      run_banded(x.data, y, in, band(own_part, in), team);
    }
  }

  void run_whole(const Stored* x, Stored* y, Map in, const Shared& shared, const Own& own,
                 const Team& team) const {
    const Map out = size_of_output(in);
    const int pixels = static_cast<int>(out.pixels()), most = chunk_panels(in, team.size);
    const Operand* const inputs = expands_ ? operands(x, in.values(), own.x) : nullptr;
    // Divide what is larger: pixels, or output panels (then the threads also share the weights).
    const bool share_pixels = pixels > out_;
    int turn = 0;
    for (int begin = 0; begin < panels_; begin += most, turn ^= 1) {
      const int count = panels_ - begin < most ? panels_ - begin : most, left = panels_ - begin - count;
      const Depth part{begin * kPanel, count * kPanel};
      // In turn: nobody overwrites a chunk before everybody has passed the next meeting.
      Operand* const chunk = shared.chunks + turn * chunk_values(in, team.size);
      // Small maps pass once over weights that no near cache holds: what comes next is fetched ahead.
      const Next to_fc2 = fc2_.ahead(share_pixels ? 0 : fc2_.first_of_share(team, pixels), part);
      const Next to_fc1 =
          left ? fc1_.ahead(begin + count + first_hidden_panel(team, left < most ? left : most, out))
               : Next{};
      share_hidden(team, count, out, [&](PanelPart mine) {
        const int p = begin + mine.panel;
        Operand* const to = chunk + std::int64_t{mine.panel} * pixels * kPanel;
        if (!expands_) return convolve_input(x, in, p, {mine.row_begin, mine.row_end}, to);
        make_rows(inputs, in, p, mine, begin == 0 && mine.first, own.hidden, to,
                  mine.last ? to_fc2 : fc1_.ahead(p + 1));
      });
      team.sync();
      const Rows rows = panel_rows(chunk, pixels, true);
      project(part, x, y, staged(y, shared.sums), [&](const auto& into) {
        if (share_pixels) {
          deal(team, pixels, Parts{8 * kTileRows, kTileRows},
               [&](Range mine, bool) { fc2_.run(rows, mine, into, to_fc1, part); });
        } else {
          fc2_.share(team, rows, pixels, into, to_fc1, part);
        }
      });
    }
  }

  // How `count` panels of a chunk are shared out: whole, or cut between rows as well, where that gives the
  // busiest thread less to do by an eighth at least. A cut costs rows of fc1, which both sides need.
  bool cuts_panels(const Team& team, int count, Map out) const {
    const int rows = count * out.height, overlap = dw_.reach(1) - dw_.stride();
    const int cut = (rows + team.size - 1) / team.size + overlap;
    const int whole = (count + team.size - 1) / team.size * out.height;
    return 8 * cut <= 7 * whole;
  }
  template <class Function>
  void share_hidden(const Team& team, int count, Map out, Function f) const {
    if (cuts_panels(team, count, out)) return share_panels(team, {count, 1, 1, out.height}, 1, f);
    const Range mine = team.share(count);
    bool first = true;
    deal(team, count, Parts{kChunkPanels}, [&](Range part, bool) {
      for (int p = part.begin; p < part.end; ++p) {
        f(PanelPart{p, 0, out.height, first, p + 1 == mine.end || p + 1 == count});
        first = false;
      }
    });
  }
  int first_hidden_panel(const Team& team, int count, Map out) const {
    if (cuts_panels(team, count, out)) return first_panel(team, {count, 1, 1, out.height});
    return team.share(count).begin;
  }

  // Rows of dw's output in panel p, by way of the rows of fc1's that they need; out: the panel of all rows.
  void make_rows(const Operand* x, Map in, int p, const PanelPart& rows, bool fresh, Operand* hidden,
                 Operand* out, Next next) const {
    const std::int64_t pitch = std::int64_t{dw_.outputs(in.width)} * kPanel;
    const int first = rows.row_begin * dw_.stride() - dw_.padding();
    const int last = first + dw_.reach(rows.row_end - rows.row_begin);
    const int top = first < 0 ? 0 : first, bottom = last > in.height ? in.height : last;
    expand(x + std::int64_t{top} * in.width * in_, (bottom - top) * in.width, p,
           hidden + std::int64_t{top} * in.width * kPanel, fresh, next);
    Operand* const to = out + rows.row_begin * pitch;
    dw_.run_map(p, hidden, in, kPanel, {rows.row_begin, rows.row_end}, to, kPanel, kPanel);
    activate(activation_, to, (rows.row_end - rows.row_begin) * pitch);
  }

  void run_banded(const Stored* x, Stored* y, Map in, const Band& own, const Team& team) const {
    const Map out = size_of_output(in);
    deal(team, out.height, Parts{band_rows(in)}, [&](Range part, bool follows) {
      const int top = part.begin, bottom = part.end;
      const int pixels = (bottom - top) * out.width;
      const std::int64_t first_pixel = std::int64_t{top} * out.width;
      const HiddenRows hidden(*this, in, follows, top, bottom);
      const std::int64_t new_values = std::int64_t{hidden.end - hidden.begin} * in.width * in_;
      const Operand* const inputs =
          expands_ ? operands(x + std::int64_t{hidden.begin} * in.width * in_, new_values, own.x) : nullptr;
      for (int begin = 0; begin < panels_; begin += kChunkPanels) {
        const int count = panels_ - begin < kChunkPanels ? panels_ - begin : kChunkPanels;
        for (int i = 0; i < count; ++i) {
          Operand* const to = own.chunk + std::int64_t{i} * pixels * kPanel;
          if (!expands_) {
            convolve_input(x, in, begin + i, {top, bottom}, to - first_pixel * kPanel);
            continue;
          }
          expand(inputs, (hidden.end - hidden.begin) * in.width, begin + i, own.hidden, false, {});
          convolve_band(in, own, hidden, begin + i, {to, kPanel, out.width, bottom - top});
          activate(activation_, to, std::int64_t{pixels} * kPanel);
        }
        const Depth depth{begin * kPanel, count * kPanel};
        const Next next = begin + count < panels_ ? Next{} : rows_behind(x, in, hidden.end, part);
        Stored* const to = y + first_pixel * out_;
        project(depth, x + first_pixel * in_, to, staged(to, own.sums), [&](const auto& into) {
          fc2_.run(panel_rows(own.chunk, pixels), {0, pixels}, into, next, depth);
        });
      }
    });
  }

  // Rows of x from `row` on that a band behind this one reads.
  Next rows_behind(const Stored* x, Map in, int row, Range band) const {
    const int wanted = (band.end - band.begin) * dw_.stride(), left = in.height - row;
    const std::int64_t pitch = std::int64_t{in.width} * in_;
    return {x + row * pitch, (wanted < left ? wanted : left) * pitch * std::int64_t{sizeof(Stored)}};
  }

  // The rows of the hidden map that output rows [top, bottom) need: first ... , as far as they exist. Those
  // before `begin` are kept from the band before.
  struct HiddenRows {
    HiddenRows(const Ffn& f, Map in, bool follows, int top, int bottom)
        : first(top * f.dw_.stride() - f.dw_.padding()),
          next_first(bottom * f.dw_.stride() - f.dw_.padding()),
          last_band(bottom == f.size_of_output(in).height) {
      begin = follows ? first + f.kept_rows() : first;
      end = first + f.dw_.reach(bottom - top);
      if (begin < 0) begin = 0;
      if (end > in.height) end = in.height;
      if (begin > end) begin = end;
    }
    int first, next_first;
    bool last_band;
    int begin, end;
  };

  // The depthwise convolution of a band; what the next one needs is kept.
  void convolve_band(Map in, const Band& own, const HiddenRows& hidden, int p, const OutputRows& to) const {
    const std::int64_t pitch = std::int64_t{in.width} * kPanel;
    Operand* const kept = own.kept + p * kept_rows() * pitch;
    const auto row_at = [&](int row) -> const Operand* {
      if (row < 0 || row >= in.height) return nullptr;
      return row >= hidden.begin ? own.hidden + (row - hidden.begin) * pitch
                                 : kept + (row - hidden.first) * pitch;
    };
    const Operand* window[kMostHiddenRows];
    for (int i = 0; i < dw_.reach(to.count); ++i) window[i] = row_at(hidden.first + i);
    dw_.run(p, InputRows<Operand>{window, kPanel, in.width}, to, kPanel);
    if (hidden.last_band) return;
    for (int i = 0; i < kept_rows(); ++i) {
      // It may itself be one that was kept, where a band is low.
      const Operand* const row = row_at(hidden.next_first + i);
      if (row) std::memmove(kept + i * pitch, row, pitch * sizeof(Operand));
    }
  }

  // Rows of dw's output in panel p where nothing expands: of x itself, whose last panel may have fewer
  // channels. out: the panel of all rows.
  void convolve_input(const Stored* x, Map in, int p, Range rows, Operand* out) const {
    const int first = p * kPanel, channels = in_ - first < kPanel ? in_ - first : kPanel;
    const std::int64_t pitch = std::int64_t{dw_.outputs(in.width)} * kPanel;
    const std::int64_t values = (rows.end - rows.begin) * pitch;
    Operand* const to = out + rows.begin * pitch;
    if (channels < kPanel) std::memset(to, 0, values * sizeof(Operand));
    dw_.prefetch_panel(p);
    dw_.run_map(p, x + first, in, in_, rows, to, kPanel, channels);
    activate(activation_, to, values);
  }

  // hidden = f(fc1(x)) of panel p for some pixels; next: weights to fetch ahead.
  void expand(const Operand* x, int pixels, int p, Operand* hidden, bool fresh, Next next) const {
    dw_.prefetch_panel(p);
    fc1_.run(p, plain_rows(x, in_, in_, fresh), {0, pixels}, into_panel(hidden), next);
    activate(activation_, hidden, std::int64_t{pixels} * kPanel);
    // Of an infinite x the columns that fill a panel up are NaN. Where a clamp makes numbers of all others,
    // they must not reach those by way of fc2.
    const int channels = hidden_ - p * kPanel;
    if (channels >= kPanel || !clamp_of(activation_).any) return;
    for (int i = 0; i < pixels; ++i) {
      std::memset(hidden + std::int64_t{i} * kPanel + channels, 0, (kPanel - channels) * sizeof(Operand));
    }
  }

  // Has run(into) add a chunk's part of fc2 to sums; the last part makes y, and adds x.
  template <class Run>
  void project(Depth part, const Stored* x, Stored* y, Operand* sums, Run run) const {
    const Operand* const earlier = part.first ? sums : nullptr;
    if (part.first + part.count == fc2_.depth()) {
      run(Into<Stored>{y, out_, kPanel, residual_ ? x : nullptr, earlier});
    } else {
      run(Into<Operand>{sums, out_, kPanel, nullptr, earlier});
    }
  }

  bool expands_, residual_;
  int in_, hidden_, out_, panels_;
  Activation activation_;
  Product fc1_;
  Depthwise dw_;
  Product fc2_;
};

}  // namespace

Block* make_ffn(const FfnSpec& spec) { return new Ffn(spec); }

}  // namespace effv2::EFFV2_TARGET
