// Work dealt out to the members of a team: all of it, once, and most of it to the fast ones.
#include "engine/hand.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <functional>
#include <random>
#include <thread>

#include "check.h"
#include "engine/panels.h"

namespace effv2::tests {
namespace {

void in_dealt_team(int size, const std::function<void(const Team&)>& work) {
  Barrier barrier;
  std::vector<Hand> hands(static_cast<std::size_t>(size));
  const auto member = [&](int rank) {
    barrier.set_size(size);
    work({rank, size, &barrier, hands.data()});
  };
  std::vector<std::thread> others;
  for (int rank = 1; rank < size; ++rank) others.emplace_back(member, rank);
  member(0);
  for (std::thread& other : others) other.join();
}

struct Work {
  int count, most, grain;
  bool meets;  // behind it
};

std::vector<Work> works(std::mt19937_64& random, int number) {
  const auto below = [&](int end) { return static_cast<int>(random() % static_cast<std::uint64_t>(end)); };
  std::vector<Work> all;
  for (int i = 0; i < number; ++i) {
    const int grain = 1 + below(6);
    all.push_back({below(60), grain * (1 + below(4)), grain, below(3) == 0});
  }
  return all;
}

}  // namespace

TEST(hand, every_part_once) {
  std::mt19937_64 random(test_seed());
  for (int size = 2; size <= 9; ++size) {
    const std::vector<Work> all = works(random, 200);
    std::vector<std::vector<std::atomic<int>>> done;
    for (const Work& work : all) done.emplace_back(static_cast<std::size_t>(work.count));
    const std::uint64_t seed = random();
    in_dealt_team(size, [&](const Team& team) {
      std::mt19937_64 own(seed + static_cast<std::uint64_t>(team.rank));
      for (std::size_t i = 0; i < all.size(); ++i) {
        const Work& work = all[i];
        int end = -1;
        deal(team, work.count, Parts{work.most, work.grain}, [&](Range part, bool follows) {
          CHECK(part.begin < part.end && part.end - part.begin <= work.most);
          CHECK(follows == (part.begin == end));
          end = part.end;
          for (int item = part.begin; item < part.end; ++item) ++done[i][static_cast<std::size_t>(item)];
          if (own() % 4 == 0) std::this_thread::yield();
          if (own() % 64 == 0) std::this_thread::sleep_for(std::chrono::microseconds(50));
        });
        if (work.meets) team.sync();
      }
    });
    for (const auto& items : done) {
      for (const std::atomic<int>& times : items) CHECK(times.load() == 1);
    }
  }
}

// Members that do not meet between two deals may be at either.
TEST(hand, members_apart) {
  const Range share{10, 20};
  const auto all = [](Range left) { return left.end - left.begin; };
  Range part{};
  Hand hand;
  // Its share of deal 1 is done when somebody who is at deal 2 begins with that of deal 2.
  hand.pick_up(1, share);
  CHECK(hand.take(1, all, &part) && part.begin == 10 && part.end == 20);
  CHECK(!hand.take_from(1, share, &part));
  CHECK(hand.take_from(2, share, &part) && part.begin == 15 && part.end == 20);
  // Then its owner, still at deal 1, keeps what it takes elsewhere out of its hand, and takes none of deal 2.
  CHECK(!hand.put(1, {0, 3}));
  CHECK(!hand.take(1, all, &part));
  hand.pick_up(2, share);
  CHECK(hand.take(2, all, &part) && part.begin == 10 && part.end == 15);
  // What its owner holds of deal 2 is not taken for that of deal 3.
  CHECK(hand.put(2, {4, 9}));
  CHECK(!hand.take_from(3, share, &part));
  CHECK(hand.take(2, all, &part) && part.begin == 4 && part.end == 9);
  // An owner who comes when all of it is done, and others are at the deal behind, finds nothing.
  for (int i = 0; i < 10; ++i) hand.take_from(3, share, &part);
  CHECK(hand.take_from(4, share, &part));
  hand.pick_up(3, share);
  CHECK(!hand.take(3, all, &part));
  CHECK(!hand.take_from(3, share, &part));
  // Its share of deal 5 is to come: that of deal 6 waits for it.
  while (hand.take_from(4, share, &part)) {
  }
  CHECK(!hand.take_from(6, share, &part));
  hand.pick_up(5, share);
  CHECK(hand.take(5, all, &part) && part.begin == 10 && part.end == 20);
  CHECK(hand.take_from(6, share, &part));
}

TEST(hand, without_hands_everybody_keeps_to_its_share) {
  for (int size = 1; size <= 5; ++size) {
    for (int rank = 0; rank < size; ++rank) {
      const Team team{rank, size};
      const Range share = team.share(37);
      int next = share.begin;
      deal(team, 37, Parts{4, 2}, [&](Range part, bool follows) {
        CHECK(part.begin == next && follows == (part.begin > share.begin));
        next = part.end;
      });
      CHECK(next == share.end);
    }
  }
}

TEST(hand, panels_and_rows_once) {
  std::mt19937_64 random(test_seed());
  const auto below = [&](int end) { return static_cast<int>(random() % static_cast<std::uint64_t>(end)); };
  for (int i = 0; i < 60; ++i) {
    const PanelShares shares{1 + below(12), 2, 1 + below(3), 1 + below(50)};
    const int rows = shares.rows, size = 2 + below(7), grain = 1 + below(14);
    std::vector<std::atomic<int>> done(static_cast<std::size_t>(shares.panels * rows));
    in_dealt_team(size, [&](const Team& team) {
      share_panels(team, shares, grain, [&](PanelPart part) {
        for (int row = part.row_begin; row < part.row_end; ++row) {
          ++done[static_cast<std::size_t>(part.panel * rows + row)];
        }
        if (team.rank == 0) std::this_thread::yield();
      });
    });
    for (const std::atomic<int>& times : done) CHECK(times.load() == 1);
  }
}

// One member does not come back from its first part before the others have done all the rest.
TEST(hand, a_slow_member_delays_others_by_a_part) {
  constexpr int kItems = 64, kPart = 2;
  std::atomic<int> done{0};
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  in_dealt_team(4, [&](const Team& team) {
    deal(team, kItems, Parts{kPart}, [&](Range part, bool) {
      if (team.rank == 0) {
        while (done < kItems - kPart && std::chrono::steady_clock::now() < deadline)
          std::this_thread::yield();
        CHECK_THAT(done >= kItems - kPart, std::to_string(done) + " of 62 done by the others");
      }
      done += part.end - part.begin;
    });
  });
  CHECK(done == kItems);
}

}  // namespace effv2::tests
