// Cores that are not equally fast, on any machine: the members of a team do their work one after the other,
// in the order in which such cores would, by clocks that only what they have computed moves.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <vector>

#include "engine/pace.h"

namespace effv2::tests {

// While it lives, networks run on so many processors of these; one call at a time, of one image.
class SimulatedCores : public Pace {
 public:
  // What was divided among the members by one deal().
  struct Division {
    int count;               // of items
    std::vector<int> items;  // that each member computed
    int longest = 0;         // of the parts that they took
    bool together = false;   // whether all began with it at the same time
    int late = 0;            // parts that somebody took after another had found nothing left
    std::uint64_t left_at = UINT64_MAX;
  };

  // slowness: of each core, the time that all items of a deal take it.
  explicit SimulatedCores(const std::vector<double>& slowness);
  ~SimulatedCores() override;

  void begins(const Team& team, int count) override;
  void did(const Team& team, Range part) override;
  void meets(const Team& team) override;

  // Of the call that came last. Fewer members than cores, where the pool's threads were busy.
  int members() const { return members_; }
  const std::vector<Division>& divisions() const { return divisions_; }
  double time() const;

 private:
  struct Member {
    double clock = 0;
    bool meeting = false;
    int division = -1;
    bool takes = false;
    std::uint64_t turn = 0;  // its last
  };
  Member& member(const Team& team);
  void leave(Member& member);
  void wait_for_turn(std::unique_lock<std::mutex>& lock, int rank);

  std::vector<double> slowness_;
  std::mutex mutex_;
  std::condition_variable moved_;
  int members_ = 0;
  std::uint64_t turns_ = 0;
  std::vector<Member> all_;
  std::vector<Division> divisions_;
};

}  // namespace effv2::tests
