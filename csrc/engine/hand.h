// Work dealt out to the members of a team, so that a slow one delays the others by a part of it and no more.
//
// Each member has the share in its hand that split() gives it, which is all that it computes where all are
// equally fast. It takes parts from the front; who is done takes half of what is left in another's hand, from
// the end. What a part computes does not depend on who has it.
#pragma once

#include <atomic>
#include <cstdint>

#include "engine/pace.h"
#include "engine/team.h"

namespace effv2 {

class alignas(64) Hand {
 public:
  static constexpr int kMost = (1 << 26) - 1;  // that a hand holds

  // Before the members of a team begin.
  void reset() {
    held_.store(0, std::memory_order_relaxed);
    deals_ = 0;
  }

  // For its owner: the number of the next deal, which all members count alike.
  std::uint32_t next_deal() { return ++deals_; }
  // For its owner: picks up its share, unless others have begun with it, or have done with it and begun with
  // that of the next deal.
  void pick_up(std::uint32_t deal, Range share) {
    std::uint64_t found = held_.load(std::memory_order_relaxed);
    while (!reached(deal_of(found), deal)) {
      if (held_.compare_exchange_weak(found, packed(deal, share), std::memory_order_relaxed)) return;
    }
  }
  // For its owner, whose hand is empty: what was taken from another. False where somebody has begun with the
  // owner's share of the next deal meanwhile.
  bool put(std::uint32_t deal, Range found) {
    std::uint64_t empty = held_.load(std::memory_order_relaxed);
    return deal_of(empty) == (deal & kDealMask) &&
           held_.compare_exchange_strong(empty, packed(deal, found), std::memory_order_relaxed);
  }
  // For its owner: from the front, as many as size(range in hand) says. False where nothing is left.
  template <class Size>
  bool take(std::uint32_t deal, Size size, Range* part) {
    std::uint64_t found = held_.load(std::memory_order_relaxed);
    for (;;) {
      const Range left = range_of(found);
      if (left.begin >= left.end || deal_of(found) != (deal & kDealMask)) return false;
      const int end = left.begin + size(left);
      if (held_.compare_exchange_weak(found, packed(deal, {end, left.end}), std::memory_order_relaxed)) {
        *part = {left.begin, end};
        return true;
      }
    }
  }
  // For others: half of it, from the end; of `share` where the owner is done with the deal before.
  bool take_from(std::uint32_t deal, Range share, Range* part) {
    std::uint64_t found = held_.load(std::memory_order_relaxed);
    for (;;) {
      Range left = range_of(found);
      if (deal_of(found) != (deal & kDealMask)) {
        // An owner at an earlier deal may hold what it has taken there, or have its share of one before this
        // to come.
        if (deal_of(found) != ((deal - 1) & kDealMask) || left.begin < left.end) return false;
        left = share;
      }
      if (left.begin >= left.end) return false;
      const int middle = left.begin + (left.end - left.begin) / 2;
      if (held_.compare_exchange_weak(found, packed(deal, {left.begin, middle}), std::memory_order_relaxed)) {
        *part = {middle, left.end};
        return true;
      }
    }
  }

 private:
  // A deal in 12 bits, then the range in 26 each. A hand whose deal is over is empty.
  static constexpr std::uint64_t kDealMask = 0xfff, kPlaceMask = kMost;
  static std::uint64_t packed(std::uint32_t deal, Range range) {
    return (deal & kDealMask) << 52 | static_cast<std::uint64_t>(range.begin) << 26 |
           static_cast<std::uint64_t>(range.end);
  }
  static std::uint64_t deal_of(std::uint64_t held) { return held >> 52; }
  static Range range_of(std::uint64_t held) {
    return {static_cast<int>(held >> 26 & kPlaceMask), static_cast<int>(held & kPlaceMask)};
  }
  // Whether a hand is at that deal or a later one; members are a few deals apart at most.
  static bool reached(std::uint64_t its, std::uint32_t deal) { return ((its - deal) & kDealMask) < 0x800; }

  std::atomic<std::uint64_t> held_{0};
  std::uint32_t deals_ = 0;
};

// Parts of at most `most`, and, but for the last, of a multiple of `grain`: the less is left, the smaller,
// for others to take.
struct Parts {
  int most;
  int grain = 1;

  int operator()(Range left, bool alone) const {
    const int all = left.end - left.begin;
    if (alone) return all < most ? all : most;
    const int half = ((all + 1) / 2 + grain - 1) / grain * grain;
    const int some = half < most ? half : most;
    return all - some < grain && all <= most ? all : some;
  }
};

// f(part, whether it follows the part before) for this member's parts of [0, count), which are as large as
// size(what is left, whether nobody else takes of it) says.
template <class Size, class Function>
inline void deal(const Team& team, int count, Size size, Function f) {
  int next = -1;
  const auto compute = [&](Range part) {
    f(part, part.begin == next);
    next = part.end;
    if (team.pace) team.pace->did(team, part);
  };
  const auto each = [&](Range left) {
    while (left.begin < left.end) {
      const int end = left.begin + size(left, true);
      compute({left.begin, end});
      left.begin = end;
    }
  };
  if (team.pace) team.pace->begins(team, count);
  if (!team.hands || count > Hand::kMost) return each(team.share(count));
  Hand& mine = team.hands[team.rank];
  const std::uint32_t number = mine.next_deal();
  mine.pick_up(number, team.share(count));
  const auto play = [&] {
    const auto some = [&](Range left) { return size(left, false); };
    for (Range part; mine.take(number, some, &part);) compute(part);
  };
  play();
  // Until nobody has any: who was passed over with an empty hand may have taken from others meanwhile.
  for (int i = 1; i < team.size;) {
    const int other = (team.rank + i) % team.size;
    Range found;
    if (!team.hands[other].take_from(number, split(count, other, team.size), &found)) {
      ++i;
      continue;
    }
    if (mine.put(number, found)) {
      play();
    } else {
      each(found);
    }
    i = 1;
  }
}

}  // namespace effv2
