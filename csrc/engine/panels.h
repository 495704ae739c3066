// Panels x rows divided among a team: threads share out the weights and still divide the work evenly.
#pragma once

#include <algorithm>

#include "engine/hand.h"

namespace effv2 {

// Panels of columns and what a row of one costs: the last may be narrower or wider than the others.
struct PanelShares {
  // More than a hand holds is counted in panels, as if all were alike.
  PanelShares(int panels, int each, int last, int rows) : panels(panels), each(each), last(last), rows(rows) {
    const std::int64_t work = std::int64_t{rows} * ((panels - 1) * std::int64_t{each} + last);
    if (work > Hand::kMost) this->each = this->last = 1;
  }
  // All of it, panel by panel; a place in it is somewhere in a row.
  int work() const { return rows * ((panels - 1) * each + last); }

  int panels;
  int each;
  int last;
  int rows;
};

// A panel, or some of its rows, that one thread computes.
struct PanelPart {
  int panel;
  int row_begin;
  int row_end;
  bool first;  // the thread's first: it meets the rows for the first time
  bool last;   // and its last, unless it takes more from others
};

// The row that a place in the work lies in.
struct PanelCut {
  PanelCut(const PanelShares& shares, int place) {
    const int panel_work = shares.rows * shares.each, whole = (shares.panels - 1) * panel_work;
    panel = place < whole ? place / panel_work : shares.panels - 1;
    begin = panel * panel_work;
    end = panel + 1 < shares.panels ? begin + panel_work : shares.work();
    row = (place - begin) / (place < whole ? shares.each : shares.last);
  }
  int panel;
  int row;         // may be the one behind the last
  int begin, end;  // of the panel
};

// Calls f(PanelPart) for this thread's part of panels x rows, panel by panel. grain: rows that it is well to
// leave together.
template <class Function>
inline void share_panels(const Team& team, const PanelShares& shares, int grain, Function f) {
  const int mine_ends = team.share(shares.work()).end;
  const PanelCut behind(shares, mine_ends);
  const int last_row_ends = behind.row ? mine_ends : behind.begin;
  bool first = true;
  const auto size = [&](Range left, bool alone) {
    const int here = std::min(left.end, PanelCut(shares, left.begin).end) - left.begin;
    const int all = left.end - left.begin;
    return alone || all > 2 * here ? here : std::min(here, std::max(all / 2, grain * shares.each));
  };
  deal(team, shares.work(), size, [&](Range part, bool) {
    const PanelCut top(shares, part.begin);
    const int bottom = part.end == top.end ? shares.rows : PanelCut(shares, part.end).row;
    if (top.row >= bottom) return;
    f(PanelPart{top.panel, top.row, bottom, first, part.end == mine_ends || part.end == last_row_ends});
    first = false;
  });
}

// The panel that share_panels() begins with.
inline int first_panel(const Team& team, const PanelShares& shares) {
  return PanelCut(shares, team.share(shares.work()).begin).panel;
}

}  // namespace effv2
