// FFN: y = x + fc2(GELU(dw(GELU(fc1(x))))), dw 3x3 depthwise.
//
// The hidden activation exists only as slices that stay in the cache: a band of rows times a chunk of
// channels. One panel of channels at a time goes through fc1 + GELU into a small private map, from
// there through dw + GELU into the chunk, and the chunk is multiplied by its part of fc2 at once.
//
// Large maps: each thread has rows of its own and walks them band by band; the last two rows of fc1's
// output are kept, so that the next band does not compute them again. Small maps: the whole map is
// one band, and the threads meet once per chunk. Where the rows divide evenly among them, each keeps to
// its own and shows the others only the edges; elsewhere they divide the panels.
#include <cstring>

#include "cpu/tiles/depthwise.h"
#include "cpu/tiles/gelu.h"
#include "cpu/tiles/gemm.h"
#include "cpu/tiles/pack.h"
#include "engine/spec.h"

namespace effv2::EFFV2_ISA {
namespace {

// A map of at most this many pixels is one band: 16 x 16 pixels x one panel is 16 KB on AVX2.
constexpr int kWholePixels = 256;
// Pixels of fc1's output per panel in a band: they should stay in the L1 cache.
constexpr int kBandPixels = 336;
constexpr int kMostBandRows = 32;
// Rows of a small map that are worth a thread of their own. Also: how many of them make an edge, half of
// which belong to either side.
constexpr int kEdgeRows = 4;
// Channels of one chunk; a multiple of kDepthBlock, so that sums do not depend on chunks.
constexpr int kChunk = kDepthBlock;
constexpr int kChunkPanels = kChunk / kPanel;
// A map that is one band has larger chunks, as long as they stay in the L2 cache: threads meet once per
// chunk.
constexpr int kSharedChunkFloats = 1 << 16;

class Ffn final : public Block {
 public:
  explicit Ffn(const FfnSpec& s)
      : channels_(s.in_channels),
        hidden_(s.hidden),
        panels_(panels_of(hidden_)),
        fc1_(s.fc1.weight, s.fc1.bias, hidden_, channels_, channels_, {kBeforeGelu, kBeforeGelu}),
        dw_(pack_depthwise(s.dw.weight, s.dw.bias, hidden_, {kBetweenGelus, kBeforeGelu})),
        fc2_(s.fc2.weight, s.fc2.bias, channels_, hidden_, panels_ * kPanel, {kAfterGelu, 1}, Tail::joined) {}

  bool output(Map in, Map* out, char*) const override {
    *out = in;
    return true;
  }
  std::int64_t multiply_adds(Map in) const override {
    return in.pixels() * hidden_ * (2 * static_cast<std::int64_t>(channels_) + 9);
  }
  std::int64_t packed_bytes() const override { return fc1_.bytes() + fc2_.bytes() + dw_.floats() * 4; }

  std::int64_t shared_floats(Map in) const override {
    if (!whole(in)) return 0;
    // Two chunks in turn; or two sets of edges, which are never more rows than the map has.
    const int buffers = panels_ > chunk_panels(in) ? 2 : 1;
    return buffers * in.pixels() * kPanel * chunk_panels(in);
  }
  std::int64_t own_floats(Map in) const override {
    if (whole(in)) return in.pixels() * kPanel * (1 + std::int64_t{chunk_panels(in)});
    return band_floats(in) + carry_floats(in) +
           in.width * band_rows(in) * kPanel * std::int64_t{chunk_panels(in)};
  }

  void run(const MapView& x, float* y, Map in, const float*, const Scratch& scratch,
           const Team& team) const override {
    if (whole(in) && team.size > 1 && divides_evenly(in, team.size)) {
      run_rows(x.data, y, in, scratch, team);
    } else if (whole(in)) {
      run_whole(x.data, y, in, scratch, team);
    } else {
      run_banded(x.data, y, in, scratch.own, team.share(in.height));
    }
  }

 private:
  static bool whole(Map in) { return in.pixels() <= kWholePixels; }
  static bool divides_evenly(Map in, int threads) {
    const int rows = in.height / threads;
    return rows * threads == in.height && rows >= kEdgeRows && rows <= kMostBandRows;
  }
  int chunk_panels(Map in) const {
    const int chunks = whole(in) ? static_cast<int>(kSharedChunkFloats / in.pixels() / kChunk) : 1;
    const int most = chunks > 1 ? chunks * kChunkPanels : kChunkPanels;
    return panels_ < most ? panels_ : most;
  }
  static int band_rows(Map in) {
    const int rows = kBandPixels / in.width - 2;
    return rows < 1 ? 1 : rows > kMostBandRows ? kMostBandRows : rows;
  }
  std::int64_t band_floats(Map in) const { return std::int64_t{in.width} * (band_rows(in) + 2) * kPanel; }
  std::int64_t carry_floats(Map in) const { return std::int64_t{in.width} * 2 * kPanel * panels_; }

  void run_whole(const float* x, float* y, Map in, const Scratch& scratch, const Team& team) const {
    const int pixels = static_cast<int>(in.pixels());
    const std::int64_t panel_floats = std::int64_t{pixels} * kPanel;
    float* hidden = scratch.own;
    const int most = chunk_panels(in);
    int turn = 0;
    for (int begin = 0; begin < panels_; begin += most, turn ^= 1) {
      const int count = panels_ - begin < most ? panels_ - begin : most;
      // Two buffers in turn: nobody overwrites a chunk before everybody has passed the next meeting.
      float* chunk = scratch.shared + turn * panel_floats * most;
      const Range mine = team.share(count);
      // Small maps pass once over weights that no near cache holds: what comes next is fetched ahead.
      const bool share_pixels = pixels > channels_;
      const int output = share_pixels ? 0 : first_panel(team, fc2_.shares(), pixels);
      const Next to_fc2 = fc2_.ahead(output, begin * kPanel, count * kPanel);
      const int left = panels_ - begin - count;
      const Next to_fc1 =
          left ? fc1_.ahead(begin + count + team.share(left < most ? left : most).begin) : Next{};
      for (int i = mine.begin; i < mine.end; ++i) {
        const int p = begin + i;
        expand(x, in, 0, in.height, p, hidden, begin == 0 && i == mine.begin,
               i + 1 < mine.end ? fc1_.ahead(p + 1) : to_fc2);
        depthwise_map<1>(hidden, in.height, in.width, kPanel, depthwise_panel(dw_, p),
                         chunk + i * panel_floats, kPanel, kPanel);
        gelu(chunk + i * panel_floats, panel_floats);
      }
      team.sync();
      // Divide what is larger: pixels, or output panels (then the threads also share the weights).
      if (share_pixels) {
        const Range rows = team.share(pixels);
        project(chunk, pixels, rows, {0, fc2_.panels()}, begin, count, x, y, true, to_fc1);
      } else {
        share_panels(team, fc2_.shares(), pixels, [&](PanelPart part) {
          const int p = part.panel;
          const Next next = part.last ? to_fc1 : fc2_.ahead(p + 1, begin * kPanel, count * kPanel);
          project(chunk, pixels, {part.row_begin, part.row_end}, {p, p + 1}, begin, count, x, y, part.first,
                  next);
        });
      }
    }
  }

  // Each thread makes its own rows of the hidden map. The dw of its first and last row needs one row more,
  // from the neighbour: the four rows around every border are copied to an edge that both sides see.
  void run_rows(const float* x, float* y, Map in, const Scratch& scratch, const Team& team) const {
    const std::int64_t pitch = std::int64_t{in.width} * kPanel;
    const Range mine = team.share(in.height);
    const int rows = mine.end - mine.begin, pixels = rows * in.width, most = chunk_panels(in);
    const bool above = team.rank > 0, below = team.rank + 1 < team.size;
    const std::int64_t offset = std::int64_t{mine.begin} * in.width * channels_;
    float* hidden = scratch.own;
    float* chunk = hidden + in.pixels() * kPanel;
    int turn = 0;
    for (int begin = 0; begin < panels_; begin += most, turn ^= 1) {
      const int count = panels_ - begin < most ? panels_ - begin : most;
      // Two sets of edges in turn: nobody overwrites one before everybody has passed the next meeting.
      const auto edge = [&](int border, int i) {
        return scratch.shared +
               ((std::int64_t{turn} * (team.size - 1) + border) * most + i) * kEdgeRows * pitch;
      };
      const auto convolve = [&](const float* const* window, int i, int row, int rows_out) {
        float* out = chunk + std::int64_t{i} * rows * pitch + row * pitch;
        depthwise<1>({window, kPanel, in.width}, depthwise_panel(dw_, begin + i), out, kPanel, in.width,
                     rows_out, kPanel);
        gelu(out, rows_out * pitch);
      };
      for (int i = 0; i < count; ++i) {
        const int p = begin + i;
        expand(x, in, mine.begin, mine.end, p, hidden, false,
               i + 1 < count ? fc1_.ahead(p + 1) : fc2_.ahead(0, begin * kPanel, count * kPanel));
        constexpr int kHalf = kEdgeRows / 2;
        if (above) std::memcpy(edge(team.rank - 1, i) + kHalf * pitch, hidden, kHalf * pitch * sizeof(float));
        if (below) {
          std::memcpy(edge(team.rank, i), hidden + (rows - kHalf) * pitch, kHalf * pitch * sizeof(float));
        }
        const float* window[kMostBandRows + 2];
        for (int row = -1; row <= rows; ++row) {
          window[row + 1] = row >= 0 && row < rows ? hidden + row * pitch : nullptr;
        }
        convolve(window + above, i, above, rows - above - below);
      }
      team.sync();
      for (int i = 0; i < count; ++i) {
        const auto finish_row = [&](const float* first, int row) {
          const float* const window[] = {first, first + pitch, first + 2 * pitch};
          convolve(window, i, row, 1);
        };
        if (above) finish_row(edge(team.rank - 1, i) + pitch, 0);
        if (below) finish_row(edge(team.rank, i), rows - 1);
      }
      project(chunk, pixels, {0, pixels}, {0, fc2_.panels()}, begin, count, x + offset, y + offset, false,
              fc1_.ahead(begin + count));
    }
  }

  void run_banded(const float* x, float* y, Map in, float* own, Range rows) const {
    const std::int64_t pitch = std::int64_t{in.width} * kPanel;
    float* band = own;
    float* carry = band + band_floats(in);
    float* chunk = carry + carry_floats(in);
    const int step = band_rows(in);
    for (int top = rows.begin; top < rows.end; top += step) {
      const int bottom = rows.end - top < step ? rows.end : top + step;
      const int pixels = (bottom - top) * in.width;
      const std::int64_t first_pixel = std::int64_t{top} * in.width;
      // fc1's rows top - 1 ... bottom are needed, as far as they exist; the first two may be carried.
      const bool carried = top > rows.begin;
      const int band_begin = carried || top == 0 ? (carried ? top + 1 : 0) : top - 1;
      const int band_end = bottom < in.height ? bottom + 1 : in.height;
      for (int begin = 0; begin < panels_; begin += kChunkPanels) {
        const int count = panels_ - begin < kChunkPanels ? panels_ - begin : kChunkPanels;
        for (int i = 0; i < count; ++i) {
          const int p = begin + i;
          float* kept = carry + 2 * pitch * p;  // rows top - 1 and top
          const auto hidden_row = [&](int row) -> const float* {
            if (row < 0 || row >= in.height) return nullptr;
            return row >= band_begin ? band + (row - band_begin) * pitch : kept + (row - (top - 1)) * pitch;
          };
          expand(x, in, band_begin, band_end, p, band, false, {});
          const float* window[kMostBandRows + 2];
          for (int row = top - 1; row <= bottom; ++row) window[row - (top - 1)] = hidden_row(row);
          depthwise<1>({window, kPanel, in.width}, depthwise_panel(dw_, p),
                       chunk + std::int64_t{i} * pixels * kPanel, kPanel, in.width, bottom - top, kPanel);
          gelu(chunk + std::int64_t{i} * pixels * kPanel, std::int64_t{pixels} * kPanel);
          if (bottom < rows.end) {
            // hidden_row(bottom - 1) may itself be carried when a band is one row high.
            std::memmove(kept, hidden_row(bottom - 1), pitch * sizeof(float));
            std::memcpy(kept + pitch, hidden_row(bottom), pitch * sizeof(float));
          }
        }
        project(chunk, pixels, {0, pixels}, {0, fc2_.panels()}, begin, count, x + first_pixel * channels_,
                y + first_pixel * channels_, false, {});
      }
    }
  }

  // hidden = GELU(fc1(x)) for rows [begin, end) and panel p; next: weights to fetch ahead.
  void expand(const float* x, Map in, int begin, int end, int p, float* hidden, bool fresh, Next next) const {
    prefetch_taps(depthwise_panel(dw_, p));
    const Rows rows = plain_rows(x + std::int64_t{begin} * in.width * channels_, channels_, channels_, fresh);
    const int pixels = (end - begin) * in.width;
    gemm(rows, 0, pixels, fc1_.panel(p), channels_, {hidden, kPanel, fc1_.panel_bias(p)}, next);
    gelu(hidden, std::int64_t{pixels} * kPanel);
  }

  // Adds a chunk's part of fc2 (hidden panels begin ... begin + count) to y; the last one adds x too.
  // then: weights to fetch ahead during the last panel.
  void project(const float* chunk, int pixels, Range rows, Range panels, int begin, int count, const float* x,
               float* y, bool fresh, Next then) const {
    const bool last = begin + count == panels_;
    for (int p = panels.begin; p < panels.end; ++p) {
      const std::int64_t column = std::int64_t{p} * kPanel;
      Result r{y + column, channels_, nullptr};
      r.columns = fc2_.columns(p);
      r.accumulate = begin > 0;
      if (last) {
        r.bias = fc2_.panel_bias(p);
        r.residual = x + column;
        r.residual_stride = channels_;
      }
      const Next next = p + 1 < panels.end ? fc2_.ahead(p + 1, begin * kPanel, count * kPanel) : then;
      const Rows a = panel_rows(chunk, pixels, fresh && p == panels.begin);
      gemm(a, rows.begin, rows.end, fc2_.panel(p).below(begin * kPanel), count * kPanel, r, next);
    }
  }

  int channels_, hidden_, panels_;
  PackedMatrix fc1_;
  Buffer dw_;
  PackedMatrix fc2_;
};

}  // namespace

Block* make_ffn(const FfnSpec& spec) { return new Ffn(spec); }

}  // namespace effv2::EFFV2_ISA
