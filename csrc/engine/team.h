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

// A panel, or some of its rows, that one thread computes.
struct PanelPart {
  int panel;
  int row_begin;
  int row_end;
  bool first;  // the thread's first: it meets the rows for the first time
  bool last;   // and its last
};

// Calls f(PanelPart) for this thread's part of panels x rows, panel by panel, so that threads share out the
// weights and still divide the work evenly.
template <class Function>
inline void share_panels(const Team& team, int panels, int rows, Function f) {
  const std::int64_t cells = std::int64_t{panels} * rows;
  const std::int64_t end = cells * (team.rank + 1) / team.size;
  bool first = true;
  for (std::int64_t cell = cells * team.rank / team.size; cell < end;) {
    const int p = static_cast<int>(cell / rows);
    const std::int64_t top = std::int64_t{p} * rows;
    const std::int64_t stop = top + rows < end ? top + rows : end;
    f(PanelPart{p, static_cast<int>(cell - top), static_cast<int>(stop - top), first, stop == end});
    first = false;
    cell = stop;
  }
}

// The panel that share_panels() begins with.
inline int first_panel(const Team& team, int panels) {
  return static_cast<int>(std::int64_t{panels} * team.rank / team.size);
}

}  // namespace effv2
