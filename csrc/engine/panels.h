// Panels x rows divided among a team: threads share out the weights and still divide the work evenly.
#pragma once

#include <algorithm>

#include "engine/hand.h"

namespace effv2 {

// Panels of columns and what a row of one costs: the last may be narrower or wider than the others.
struct PanelShares {
  int panels;
  int each;
  int last;

  // The work of so many rows, panel by panel; a place in it is somewhere in a row.
  int work(int rows) const { return (panels - 1) * rows * each + rows * last; }
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
  PanelCut(const PanelShares& shares, int rows, int place) {
    const int whole = (shares.panels - 1) * rows * shares.each;
    panel = place < whole ? place / (rows * shares.each) : shares.panels - 1;
    begin = panel * rows * shares.each;
    end = panel + 1 < shares.panels ? begin + rows * shares.each : shares.work(rows);
    row = (place - begin) / (place < whole ? shares.each : shares.last);
  }
  int panel;
  int row;         // may be the one behind the last
  int begin, end;  // of the panel
};

// Calls f(PanelPart) for this thread's part of panels x rows, panel by panel. grain: rows that it is well to
// leave together.
template <class Function>
inline void share_panels(const Team& team, const PanelShares& shares, int rows, int grain, Function f) {
  const int mine_ends = team.share(shares.work(rows)).end;
  const PanelCut behind(shares, rows, mine_ends);
  const int last_row_ends = behind.row ? mine_ends : behind.begin;
  bool first = true;
  const auto size = [&](Range left, bool alone) {
    const int here = std::min(left.end, PanelCut(shares, rows, left.begin).end) - left.begin;
    const int all = left.end - left.begin;
    return alone || all > 2 * here ? here : std::min(here, std::max(all / 2, grain * shares.each));
  };
  deal(team, shares.work(rows), size, [&](Range part, bool) {
    const PanelCut top(shares, rows, part.begin);
    const int bottom = part.end == top.end ? rows : PanelCut(shares, rows, part.end).row;
    if (top.row >= bottom) return;
    f(PanelPart{top.panel, top.row, bottom, first, part.end == mine_ends || part.end == last_row_ends});
    first = false;
  });
}

// The panel that share_panels() begins with.
inline int first_panel(const Team& team, const PanelShares& shares, int rows) {
  return PanelCut(shares, rows, team.share(shares.work(rows)).begin).panel;
}

}  // namespace effv2
