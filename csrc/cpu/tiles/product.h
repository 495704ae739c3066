// A matrix of weights, packed, and its product with rows of activations: panels of columns, what is fetched
// ahead of them, and what is done to their sums.
#pragma once

#include "cpu/tiles/activation.h"
#include "cpu/tiles/gemm.h"
#include "engine/memory.h"
#include "engine/panels.h"

namespace effv2::EFFV2_TARGET {

// What weights and biases are multiplied by as they are packed.
struct Scale {
  double weight = 1;
  double bias = 1;
};

inline float scaled(float value, double scale) { return static_cast<float>(value * scale); }

// Whether a last panel of one vector is joined with the one before it. A product of three vectors runs at the
// speed of one of two; one of a single vector loads more than it multiplies. Maps in panels cannot have it.
enum class Tail { separate, joined };

// Where a product goes. Panel p of its columns begins at out + p * panel_stride; residual and sum (an earlier
// part of the same sum), if not null, are laid out likewise.
template <class Out>
struct Into {
  Out* out;
  std::int64_t row_stride;
  std::int64_t panel_stride = kPanel;
  const Out* residual = nullptr;
  const Operand* sum = nullptr;
  bool whole_panels = false;  // stored with the columns that only fill the last one up
};

// A panel of a map in panels, whichever it is.
inline Into<Operand> into_panel(Operand* panel) { return {panel, kPanel, 0, nullptr, nullptr, true}; }

// A part of the depth of a product, which is complete where it ends with the matrix.
struct Depth {
  int first;
  int count;
};

// A matrix (outputs x depth) packed as [panel][depth_padded][kPanel], the last panel perhaps wider, and its
// bias padded to whole vectors. Padding is zero, so padded columns and rows add nothing.
class Product {
 public:
  Product() = default;
  Product(int outputs, int depth_padded, Tail tail = Tail::separate)
      : outputs_(outputs),
        depth_padded_(depth_padded),
        panels_(panels_of(outputs)),
        last_width_(kPanel),
        bias_(static_cast<std::int64_t>(panels_) * kPanel) {
    if (tail == Tail::joined && panels_ > 1 && columns(panels_ - 1) <= kLanes) {
      --panels_;
      last_width_ = kWidePanel;
    }
    weights_ = Array<Stored>((static_cast<std::int64_t>(panels_ - 1) * kPanel + last_width_) * depth_padded);
  }
  // weight: (outputs, depth).
  Product(const float* weight, const float* bias, int outputs, int depth, int depth_padded, Scale scale,
          Tail tail)
      : Product(outputs, depth_padded, tail) {
    for (int n = 0; n < outputs; ++n) {
      for (int k = 0; k < depth; ++k) {
        set(n, k, scaled(weight[static_cast<std::int64_t>(n) * depth + k], scale.weight));
      }
      set_bias(n, scaled(bias[n], scale.bias));
    }
  }

  void set(int output, int k, float value) {
    const int p = output / kPanel < panels_ ? output / kPanel : panels_ - 1;
    weights_
        .data()[offset(p) + static_cast<std::int64_t>(k) * width(p) + packed_column(output - p * kPanel)] =
        static_cast<Stored>(value);
  }
  void set_bias(int output, float value) { bias_.data()[output] = static_cast<Operand>(value); }
  // Applied to its sums in registers; what more there is to an activation is left to who calls.
  void set_clamp(Clamp clamp) { clamp_ = clamp; }

  int outputs() const { return outputs_; }
  int panels() const { return panels_; }
  int depth() const { return depth_padded_; }
  // Columns of panel p that exist.
  int columns(int p) const { return p + 1 < panels_ ? kPanel : outputs_ - p * kPanel; }
  std::int64_t bytes() const { return weights_.bytes() + bias_.bytes(); }

  // The start of a panel, or of part of its depth, for a product before it to fetch; nothing behind the last.
  Next ahead(int p) const { return ahead(p, {0, depth_padded_}); }
  Next ahead(int p, Depth part) const {
    return p < panels_ ? ahead_of(panel(p).below(part.first), part.count) : Next{};
  }
  // The panel that share() begins with.
  int first_of_share(const Team& team, int rows) const { return first_panel(team, shares(rows)); }

  // Rows times panel p. next: what is wanted after it.
  template <class Out>
  void run(int p, const Rows& a, Range rows, const Into<Out>& into, Next next) const {
    run(p, a, rows, into, next, {0, depth_padded_});
  }
  template <class Out>
  void run(int p, const Rows& a, Range rows, const Into<Out>& into, Next next, Depth part) const {
    gemm(a, rows.begin, rows.end, panel(p).below(part.first), part.count, result(p, into, part), next);
  }

  // All panels, each fetching the next one.
  template <class Out>
  void run(const Rows& a, Range rows, const Into<Out>& into, Next next) const {
    run(a, rows, into, next, {0, depth_padded_});
  }
  template <class Out>
  void run(const Rows& a, Range rows, const Into<Out>& into, Next next, Depth part) const {
    Rows left = a;
    for (int p = 0; p < panels_; ++p) {
      run(p, left, rows, into, p + 1 < panels_ ? ahead(p + 1, part) : next, part);
      left.fresh = false;
    }
  }

  // A thread's share of panels x rows, so that threads share out the weights and still divide the work
  // evenly.
  template <class Out>
  void share(const Team& team, const Rows& a, int rows, const Into<Out>& into, Next next) const {
    share(team, a, rows, into, next, {0, depth_padded_});
  }
  template <class Out>
  void share(const Team& team, const Rows& a, int rows, const Into<Out>& into, Next next, Depth part) const {
    share_panels(team, shares(rows), kTileRows, [&](PanelPart mine) {
      Rows left = a;
      left.fresh = a.fresh && mine.first;
      run(mine.panel, left, {mine.row_begin, mine.row_end}, into,
          mine.last ? next : ahead(mine.panel + 1, part), part);
    });
  }

  // A thread's share of one row, whose weights are read once.
  template <class Out>
  void share_row(const Team& team, const Operand* row, const Into<Out>& into) const {
    const Depth all{0, depth_padded_};
    deal(team, panels_, Parts{kSideBySide}, [&](Range mine, bool) {
      // The last may be narrower or wider.
      const int whole = std::min(mine.end, panels_ - 1) - mine.begin;
      if (whole > 0) {
        RowRuns<Stored, Out>::table.of[whole - 1](row, panel(mine.begin), offset(1), depth_padded_,
                                                  result(mine.begin, into, all));
      }
      if (mine.end == panels_) run(panels_ - 1, plain_rows(row, 0, depth_padded_), {0, 1}, into, {}, all);
    });
  }

 private:
  template <class Out>
  Result<Out> result(int p, const Into<Out>& into, Depth part) const {
    const std::int64_t column = p * into.panel_stride;
    Result<Out> r{into.out + column, into.row_stride};
    r.columns = into.whole_panels ? kPanel : columns(p);
    if (into.sum) {
      r.sum = into.sum + column;
      r.sum_stride = into.row_stride;
    }
    if (part.first + part.count == depth_padded_) {
      r.bias = bias_.data() + p * kPanel;
      if (clamp_.any) r.clamp = &clamp_;
      if (into.residual) {
        r.residual = into.residual + column;
        r.residual_stride = into.row_stride;
      }
    }
    return r;
  }
  Panel<Stored> panel(int p) const { return {weights_.data() + offset(p), width(p)}; }
  // What a row of each panel costs, in vectors.
  PanelShares shares(int rows) const {
    return {panels_, kTileVectors, (columns(panels_ - 1) + kLanes - 1) / kLanes, rows};
  }
  int width(int p) const { return p + 1 < panels_ ? kPanel : last_width_; }
  std::int64_t offset(int p) const { return static_cast<std::int64_t>(p) * depth_padded_ * kPanel; }

  int outputs_ = 0;
  int depth_padded_ = 0;
  int panels_ = 0;
  int last_width_ = 0;
  Array<Stored> weights_;
  Array<Operand> bias_;
  Clamp clamp_;
};

}  // namespace effv2::EFFV2_TARGET
