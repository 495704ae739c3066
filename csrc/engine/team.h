// The threads that work on one image together.
#pragma once

#include <atomic>
#include <cstdint>

namespace effv2 {

// All threads of a team must arrive before any goes on. Waiting threads spin, then sleep: blocks keep
// their threads evenly loaded, so the wait is normally far shorter than a system call.
class Barrier {
 public:
  // Every member may set the size, to the same value, before it first waits.
  void set_size(int size) { size_.store(size, std::memory_order_relaxed); }
  void arrive_and_wait();
  // So far; for members, who take part in each.
  std::int64_t meetings() const { return generation_.load(std::memory_order_relaxed); }

 private:
  std::atomic<int> size_{1};
  alignas(64) std::atomic<int> waiting_{0};
  alignas(64) std::atomic<std::uint32_t> generation_{0};
  std::atomic<int> sleeping_{0};
  std::atomic<int> last_processor_{-1};  // of the member that arrived last
};

struct Range {
  int begin;
  int end;
};

// The part of [0, count) that belongs to one of `size` members: sizes differ by at most one.
inline Range split(int count, int rank, int size) {
  const auto cut = [&](int r) { return static_cast<int>(static_cast<std::int64_t>(count) * r / size); };
  return {cut(rank), cut(rank + 1)};
}

// One thread's view of its team.
struct Team {
  int rank = 0;
  int size = 1;
  Barrier* barrier = nullptr;

  void sync() const {
    if (size > 1) barrier->arrive_and_wait();
  }
  Range share(int count) const { return split(count, rank, size); }
};

// Panels of columns and what a row of one costs: the last may be narrower or wider than the others.
struct PanelShares {
  int panels;
  int each;
  int last;
};

// A panel, or some of its rows, that one thread computes.
struct PanelPart {
  int panel;
  int row_begin;
  int row_end;
  bool first;  // the thread's first: it meets the rows for the first time
  bool last;   // and its last
};

// Where in panels x rows, panel by panel, the share of a thread begins.
struct PanelCut {
  PanelCut(const PanelShares& shares, int rows, int rank, int size) {
    const std::int64_t whole = std::int64_t{shares.panels - 1} * rows * shares.each;
    const std::int64_t all = whole + std::int64_t{rows} * shares.last;
    const std::int64_t cut = all * rank / size;
    panel = cut < whole ? static_cast<int>(cut / (std::int64_t{rows} * shares.each)) : shares.panels - 1;
    const std::int64_t rest = cut - std::int64_t{panel} * rows * shares.each;
    row = static_cast<int>(rest / (cut < whole ? shares.each : shares.last));
  }
  int panel;
  int row;  // may be the one behind the last
};

// Calls f(PanelPart) for this thread's part of panels x rows, panel by panel, so that threads share out the
// weights and still divide the work evenly.
template <class Function>
inline void share_panels(const Team& team, const PanelShares& shares, int rows, Function f) {
  const PanelCut begin(shares, rows, team.rank, team.size), end(shares, rows, team.rank + 1, team.size);
  bool first = true;
  for (int panel = begin.panel; panel <= end.panel; ++panel) {
    const int top = panel == begin.panel ? begin.row : 0, bottom = panel == end.panel ? end.row : rows;
    if (top >= bottom) continue;
    const bool last = panel == end.panel || (panel + 1 == end.panel && end.row == 0);
    f(PanelPart{panel, top, bottom, first, last});
    first = false;
  }
}

// The panel that share_panels() begins with.
inline int first_panel(const Team& team, const PanelShares& shares, int rows) {
  return PanelCut(shares, rows, team.rank, team.size).panel;
}

}  // namespace effv2
