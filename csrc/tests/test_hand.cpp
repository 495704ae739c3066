// Work dealt out to the members of a team: all of it, once, and most of it to the fast ones.
#include "engine/hand.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <functional>
#include <numeric>
#include <random>
#include <thread>

#include "check.h"
#include "engine/panels.h"
#include "networks.h"
#include "simulated_cores.h"

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

// One block of each kind of S0, at its widths.
static NetworkSample network_of_s0_widths(Random& random, Map image) {
  const auto table = [&](int halvings) { return table_after(halvings, image.height, image.width); };
  NetworkSample network;
  network.blocks = {stem_sample(random, 3, 16, 32),
                    ffn_sample(random, 32, 128),
                    conv_sample(random, 32, 48, {3, 2}),
                    ffn_sample(random, 48, 192),
                    conv_sample(random, 48, 96, {3, 2}),
                    attention_sample(random, 96, {8, 32, 128}, 2, table(5)),
                    ffn_sample(random, 96, 288),
                    attention_downsample_sample(random, 96, 176, {8, 16, 64}, table(4)),
                    attention_sample(random, 176, {8, 32, 128}, 1, table(5)),
                    ffn_sample(random, 176, 704),
                    head_sample(random, 176, 1000)};
  return network;
}

// A whole network by three cores and one that is four times as slow: it delays nobody by more than the part
// that it is at, and so computes about its share, a thirteenth. Results are the same bits.
TEST(hand, a_network_on_unequal_cores) {
  constexpr int kMembers = 4;
  constexpr double kSlow = 4, kShare = 1 / (1 + (kMembers - 1) * kSlow);
  constexpr Map kImage{160, 192, 3};
  Random random;
  const NetworkSample sample = network_of_s0_widths(random, kImage);
  const std::vector<float> values = random.normal(kImage.values());
  for (const Target* target : available_targets()) {
    const std::unique_ptr<Network> network = sample.build(*target);
    const Batch batch = stored_batch(*target, values, 1, kImage);
    const Outputs expected = run_network(sample, *network, batch.images, 1, "alone");
    for (const std::size_t slow : {std::size_t{0}, std::size_t{kMembers - 1}}) {
      const std::string what =
          std::string(target->isa) + " " + target->format + ", member " + std::to_string(slow) + " is slow";
      std::vector<double> slowness(kMembers, 1.0);
      slowness[slow] = kSlow;
      const SimulatedCores cores(slowness);
      const Outputs outputs = run_network(sample, *network, batch.images, kMembers, what);
      CHECK_THAT(same_bits(outputs, expected), what + ": other bits");
      CHECK_THAT(cores.members() == kMembers, what + ": a team of " + std::to_string(cores.members()));
      int telling = 0;
      for (const SimulatedCores::Division& division : cores.divisions()) {
        const double count = division.count, longest = division.longest, its = division.items[slow];
        const std::string found = what + ", of " + std::to_string(division.count) +
                                  " items in parts of up to " + std::to_string(division.longest) + ": ";
        CHECK(std::accumulate(division.items.begin(), division.items.end(), 0) == division.count);
        CHECK_THAT(division.late == 0, found + std::to_string(division.late) + " parts begun too late");
        // Its time is all of 4 its, and nobody has nothing to do before the last part is begun.
        const double most = kShare * count + longest, least = kShare * (count - (kMembers - 1) * longest);
        if (!division.together) continue;
        CHECK_THAT(least <= its && its <= most,
                   found + std::to_string(division.items[slow]) + " by the slow one");
        telling += most < 0.8 * count / kMembers;
      }
      CHECK_THAT(telling >= 4, what + ": an equal share would be noticed in " + std::to_string(telling));
    }
  }
}

}  // namespace effv2::tests
