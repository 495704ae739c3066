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

class Hand;
class Pace;

// One thread's view of its team.
struct Team {
  int rank = 0;
  int size = 1;
  Barrier* barrier = nullptr;
  Hand* hands = nullptr;  // of its members, where they take work from each other; see hand.h
  Pace* pace = nullptr;   // in tests of slow members; see pace.h

  void sync() const {
    if (size > 1) meet();
  }
  Range share(int count) const { return split(count, rank, size); }

 private:
  void meet() const;
};

}  // namespace effv2
