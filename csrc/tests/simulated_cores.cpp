#include "simulated_cores.h"

#include <algorithm>
#include <utility>

#include "check.h"
#include "engine/threads.h"

namespace effv2::tests {

SimulatedCores::SimulatedCores(const std::vector<double>& slowness)
    : slowness_(slowness), all_(slowness.size()) {
  pretend_cpus(static_cast<int>(slowness.size()));
  pretend_pace(this);
}

SimulatedCores::~SimulatedCores() {
  pretend_pace(nullptr);
  pretend_cpus(0);
}

SimulatedCores::Member& SimulatedCores::member(const Team& team) {
  members_ = team.size;
  return all_[static_cast<std::size_t>(team.rank)];
}

void SimulatedCores::leave(Member& member) {
  if (!member.takes) return;
  Division& division = divisions_[static_cast<std::size_t>(member.division)];
  division.left_at = std::min(division.left_at, member.turn);
  member.takes = false;
}

// Who is behind all others goes on; of equal ones the first.
void SimulatedCores::wait_for_turn(std::unique_lock<std::mutex>& lock, int rank) {
  moved_.notify_all();
  Member& mine = all_[static_cast<std::size_t>(rank)];
  moved_.wait(lock, [&] {
    for (int other = 0; other < members_; ++other) {
      const Member& its = all_[static_cast<std::size_t>(other)];
      if (!its.meeting && std::pair(its.clock, other) < std::pair(mine.clock, rank)) return false;
    }
    return true;
  });
  mine.turn = ++turns_;
}

void SimulatedCores::begins(const Team& team, int count) {
  std::unique_lock<std::mutex> lock(mutex_);
  Member& mine = member(team);
  leave(mine);
  const auto number = static_cast<std::size_t>(++mine.division);
  if (number == divisions_.size()) {
    Division made{count, std::vector<int>(static_cast<std::size_t>(team.size))};
    made.together = std::all_of(all_.begin(), all_.begin() + members_, [&](const Member& other) {
      return other.clock == mine.clock && !other.takes;
    });
    divisions_.push_back(std::move(made));
  }
  CHECK(divisions_[number].count == count);
  mine.takes = true;
  wait_for_turn(lock, team.rank);
}

void SimulatedCores::did(const Team& team, Range part) {
  std::unique_lock<std::mutex> lock(mutex_);
  Member& mine = member(team);
  Division& division = divisions_[static_cast<std::size_t>(mine.division)];
  const auto rank = static_cast<std::size_t>(team.rank);
  const int items = part.end - part.begin;
  division.items[rank] += items;
  division.longest = std::max(division.longest, items);
  division.late += mine.turn > division.left_at;
  mine.clock += slowness_[rank] * items / division.count;
  wait_for_turn(lock, team.rank);
}

void SimulatedCores::meets(const Team& team) {
  const std::lock_guard<std::mutex> lock(mutex_);
  Member& mine = member(team);
  leave(mine);
  mine.meeting = true;
  const auto end = all_.begin() + members_;
  if (std::all_of(all_.begin(), end, [](const Member& other) { return other.meeting; })) {
    const double last = time();
    for (auto other = all_.begin(); other != end; ++other) {
      other->clock = last;
      other->meeting = false;
    }
  }
  moved_.notify_all();
}

double SimulatedCores::time() const {
  double last = 0;
  for (const Member& member : all_) last = std::max(last, member.clock);
  return last;
}

}  // namespace effv2::tests
