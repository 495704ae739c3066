// Teams and barriers, the pool of threads, several callers at once, fork().
#include <pthread.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <thread>

#include "engine/dealing.h"
#include "engine/panels.h"
#include "engine/threads.h"
#include "networks.h"

namespace effv2::tests {
namespace {

#ifdef EFFV2_THREAD_SANITIZER
constexpr bool kThreadSanitizer = true;
constexpr int kRepeat = 1;
#else
constexpr bool kThreadSanitizer = false;
constexpr int kRepeat = 10;
#endif

void in_team(int size, const std::function<void(const Team&)>& work) {
  Barrier barrier;
  const auto member = [&](int rank) {
    barrier.set_size(size);
    work({rank, size, &barrier});
  };
  std::vector<std::thread> others;
  for (int rank = 1; rank < size; ++rank) others.emplace_back(member, rank);
  member(0);
  for (std::thread& other : others) other.join();
}

// What one call of the pool saw. Plain memory: the pool itself must order the accesses.
struct Call {
  int sizes[512] = {};
  int runs[512] = {};
  std::thread::id caller;
};

void record(void* argument, int rank, int size) {
  Call& call = *static_cast<Call*>(argument);
  call.sizes[rank] = size;
  ++call.runs[rank];
  if (rank == 0) call.caller = std::this_thread::get_id();
}

// Returns the size of the team; fails unless every rank ran once.
int check_call(int threads) {
  Call call;
  run_on_threads(threads, record, &call);
  const int size = call.sizes[0];
  const int most = std::max(1, std::min(threads, usable_cpus()));
  CHECK_THAT(size >= 1 && size <= most,
             "a team of " + std::to_string(size) + " where " + std::to_string(most) + " were allowed");
  for (int rank = 0; rank < 512; ++rank) {
    if (call.runs[rank] == (rank < size) && call.sizes[rank] == (rank < size ? size : 0)) continue;
    fail(__FILE__, __LINE__,
         "rank " + std::to_string(rank) + " of " + std::to_string(size) + " ran " +
             std::to_string(call.runs[rank]) + " times");
    break;
  }
  CHECK(call.caller == std::this_thread::get_id());
  return size;
}

// A network, images, and what it makes of them.
struct Job {
  NetworkSample sample;
  std::unique_ptr<Network> network;
  Batch batch;
  Outputs expected;

  bool right(int threads) const {
    return same_bits(run_network(sample, *network, batch.images, threads, "a call"), expected);
  }
};

Job make_job(Random& random, const Target& target, Map size, int images) {
  NetworkSample sample = small_network(random, size.height, size.width);
  std::unique_ptr<Network> network = sample.build(target);
  Batch batch = batch_of(random.normal(images * size.values()), images, size, nchw(size));
  Outputs expected = run_network(sample, *network, batch.images, 1, "the first call");
  return {std::move(sample), std::move(network), std::move(batch), std::move(expected)};
}

void at_once(int callers, const std::function<void(int)>& call) {
  std::vector<std::thread> threads;
  for (int i = 0; i < callers; ++i) threads.emplace_back(call, i);
  for (std::thread& thread : threads) thread.join();
}

// Runs `check` in a child process; fails the test unless it returns true there within a minute. The child
// leaves by _exit(): no destructors, no exit handlers, no check for leaks of what the parent allocated.
void check_in_child(const char* what, const std::function<bool()>& check) {
  const int before = failures();
  const pid_t child = fork();
  if (child == 0) {
    alarm(60);  // alarms are not inherited
    bool passed = false;
    try {
      passed = check() && failures() == before;
    } catch (const std::exception& error) {
      fail(__FILE__, __LINE__, std::string("unexpected exception: ") + error.what());
    }
    _exit(passed ? 0 : 1);
  }
  if (child < 0) return fail(__FILE__, __LINE__, "fork() failed");
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child);
  CHECK_THAT(WIFEXITED(status) && WEXITSTATUS(status) == 0,
             std::string(what) + ": the child ended with status " + std::to_string(status));
}

void check_panels(const PanelShares& shares, int size) {
  const int rows = shares.rows, all = shares.work();
  std::vector<int> seen(static_cast<std::size_t>(shares.panels * rows));
  for (int rank = 0; rank < size; ++rank) {
    const Team team{rank, size, nullptr};
    int calls = 0, cost = 0;
    bool ended = false;
    share_panels(team, shares, 6, [&](PanelPart part) {
      CHECK(!ended);
      ended = part.last;
      CHECK(part.first == (++calls == 1));
      if (part.first) CHECK(part.panel == first_panel(team, shares));
      CHECK(part.panel >= 0 && part.panel < shares.panels);
      CHECK(part.row_begin >= 0 && part.row_begin < part.row_end && part.row_end <= rows);
      for (int row = part.row_begin; row < part.row_end; ++row) {
        ++seen[static_cast<std::size_t>(part.panel * rows + row)];
        cost += part.panel + 1 < shares.panels ? shares.each : shares.last;
      }
    });
    CHECK(ended == (calls > 0));
    CHECK(std::abs(cost * size - all) <= 2 * size * std::max(shares.each, shares.last));  // evenly
  }
  for (const int times : seen) CHECK(times == 1);
}

}  // namespace

TEST(threads, shares_cover_everything_once) {
  for (const int size : {1, 2, 3, 5, 8, 64}) {
    for (const int count : {0, 1, 2, 3, 7, 8, 49, 1000}) {
      int next = 0, smallest = count, largest = 0;
      for (int rank = 0; rank < size; ++rank) {
        const Range mine = Team{rank, size, nullptr}.share(count);
        CHECK(mine.begin == next && mine.end >= mine.begin);
        next = mine.end;
        smallest = std::min(smallest, mine.end - mine.begin);
        largest = std::max(largest, mine.end - mine.begin);
      }
      CHECK(next == count && largest - smallest <= 1);
    }
    for (const int panels : {1, 2, 5}) {
      for (const int rows : {1, 4, 13}) {
        for (const int last_cost : {1, 2, 3}) check_panels({panels, 2, last_cost, rows}, size);
      }
    }
    // More than a hand holds.
    check_panels({3, 1 << 24, 5, 7}, size);
  }
}

// Every image goes to threads that take it alone or to one team; nobody is in two, and more threads of a team
// never become fewer that help.
TEST(threads, images_are_dealt_out_once) {
  for (const int threads : {1, 2, 3, 8, 31, 128}) {
    for (const int images : {1, 2, 5, 31, 64, 1000}) {
      const Dealing dealing(images, threads);
      const int group = Dealing::group(images, threads);
      int alone = 0, last = 0;
      for (int rank = 0; rank < threads; ++rank) alone += dealing.taken_alone(rank, group);
      CHECK(alone == dealing.alone && dealing.alone + dealing.left == images);
      CHECK(dealing.left < threads);
      for (int team = 0; team < dealing.left; ++team) {
        const Range members = dealing.members(team);
        CHECK(members.begin == last && members.end > last);
        CHECK(dealing.helpers(team) >= 1 && dealing.helpers(team) <= members.end - members.begin);
        for (int rank = members.begin; rank < members.end; ++rank) CHECK(dealing.team_of(rank) == team);
        last = members.end;
      }
      CHECK(dealing.left == 0 || last == threads);
    }
  }
  for (int threads = 1; threads < 256; ++threads) {
    CHECK(helpful(threads) <= threads && helpful(threads) <= helpful(threads + 1));
    CHECK(4 * threads <= 5 * helpful(threads) + 1);
  }
}

TEST(threads, split_does_not_overflow) {
  const Range last = split(2147483647, 255, 256);
  CHECK(last.end == 2147483647 && last.begin > 2139000000);
}

// Nobody passes before everybody has arrived, and what was written before is seen behind.
TEST(threads, barrier) {
  for (const int size : {1, 2, 3, 5}) {
    std::vector<int> phase(static_cast<std::size_t>(size));
    const int phases = size > usable_cpus() ? 50 * kRepeat : 500 * kRepeat;
    in_team(size, [&](const Team& team) {
      for (int i = 1; i <= phases; ++i) {
        phase[static_cast<std::size_t>(team.rank)] = i;
        team.sync();
        for (const int other : phase) {
          if (other != i)
            fail(__FILE__, __LINE__,
                 "a thread is in phase " + std::to_string(other) + ", not " + std::to_string(i));
        }
        team.sync();
      }
    });
  }
}

TEST(threads, every_rank_runs_once) {
  for (const int threads : {-1, 0, 1, 2, 3, 5, 64, 300, 1 << 20}) {
    for (int i = 0; i < 20; ++i) check_call(threads);
  }
}

// As on a machine of many processors: every part of the work is shared by more threads than it has pieces.
TEST(threads, large_teams) {
  Random random;
  const Map size{37, 29, 3};
  const NetworkSample sample = small_network(random, size.height, size.width);
  const std::vector<float> values = random.normal(3 * size.values());
  for (const Target* target : fp32_targets()) {
    const std::unique_ptr<Network> network = sample.build(*target);
    for (const int count : {1, 3}) {
      const Batch batch = batch_of(values, count, size, nchw(size));
      const Outputs expected = run_network(sample, *network, batch.images, 1, target->isa);
      pretend_cpus(32);
      for (const int threads : {4, 7, 16, 32}) {
        CHECK(usable_cpus() == 32 && check_call(threads) == threads);
        CHECK_THAT(same_bits(run_network(sample, *network, batch.images, threads, target->isa), expected),
                   std::string(target->isa) + ": other bits with " + std::to_string(threads) + " threads");
      }
      pretend_cpus(0);
    }
  }
}

TEST(threads, idle_threads_help) {
  int largest = 0;
  for (int i = 0; i < 20; ++i) largest = std::max(largest, check_call(2));
  CHECK(largest == std::min(2, usable_cpus()));
}

TEST(threads, many_calls) {
  for (int i = 0; i < 1000 * kRepeat; ++i) check_call(2 + i % 2);
}

// Long enough that threads go to sleep in between, or are about to.
TEST(threads, calls_after_pauses) {
  for (int i = 0; i < 100; ++i) {
    std::this_thread::sleep_for(std::chrono::microseconds(i % 4 == 3 ? 3000 : 60 + i));
    check_call(2);
  }
}

TEST(threads, several_callers_at_once) {
  at_once(5, [](int caller) {
    for (int i = 0; i < 40 * kRepeat; ++i) check_call(1 + (i + caller) % 4);
  });
}

#ifdef __linux__
TEST(threads, only_processors_that_may_be_used) {
  std::thread([] {
    cpu_set_t mine;
    CPU_ZERO(&mine);
    CPU_SET(sched_getcpu(), &mine);
    if (sched_setaffinity(0, sizeof mine, &mine) != 0)
      return note("skipped: the affinity cannot be set here");
    CHECK(usable_cpus() == 1);
    CHECK(check_call(8) == 1);
  }).join();
}

// Where no thread can be started the caller works alone. In a child, which has none yet: stacks of 256 MB do
// not fit into the 64 MB that it may still map.
TEST(threads, no_more_threads) {
#if defined(EFFV2_THREAD_SANITIZER) || defined(EFFV2_ADDRESS_SANITIZER)
  note("skipped: sanitizers need more memory than this test allows");
#else
  check_in_child("no more threads", [] {
    pthread_attr_t large;
    pthread_attr_init(&large);
    pthread_attr_setstacksize(&large, std::size_t{256} << 20);
    pthread_setattr_default_np(&large);
    std::FILE* file = std::fopen("/proc/self/statm", "r");
    unsigned long pages = 0;
    if (!file || std::fscanf(file, "%lu", &pages) != 1) return false;
    std::fclose(file);
    const rlim_t bytes = pages * static_cast<rlim_t>(sysconf(_SC_PAGESIZE)) + (rlim_t{64} << 20);
    const rlimit limit{bytes, bytes};
    return setrlimit(RLIMIT_AS, &limit) == 0 && check_call(2) == 1 && check_call(3) == 1;
  });
#endif
}
#endif  // __linux__

TEST(threads, callers_on_one_network) {
  Random random;
  const Job job = make_job(random, *fp32_targets().front(), {40, 51, 3}, 3);
  at_once(4, [&](int caller) {
    for (int i = 0; i < 4 * kRepeat; ++i) CHECK(job.right(1 + (caller + i) % 4));
  });
}

TEST(threads, callers_on_several_networks) {
  Random random;
  std::vector<Job> jobs;
  for (const Target* target : fp32_targets()) jobs.push_back(make_job(random, *target, {40, 51, 3}, 2));
  jobs.push_back(make_job(random, *fp32_targets().back(), {17, 90, 3}, 1));
  at_once(5, [&](int caller) {
    for (int i = 0; i < 3 * kRepeat; ++i) {
      const Job& job = jobs[static_cast<std::size_t>(caller + i) % jobs.size()];
      CHECK(job.right(1 + (caller + i) % 3));
    }
  });
}

// Plans and contexts do not exist yet: several threads make them at once, for several resolutions.
TEST(threads, first_calls_at_once) {
  Random random;
  const NetworkSample sample = small_network(random, 0, 0, true);
  const std::unique_ptr<Network> network = sample.build(*fp32_targets().front());
  const std::vector<float> values = random.normal(64 * 64 * 3);
  constexpr int kCallers = 6;
  std::vector<Outputs> outputs(kCallers);
  const auto images = [&](int caller) {
    const Map size{40 + caller / 2, 33, 3};
    return Images{values.data(), 1, 3, size.height, size.width, 0, 1, 33 * 3, 3};
  };
  at_once(kCallers, [&](int i) {
    outputs[static_cast<std::size_t>(i)] = run_network(sample, *network, images(i), 2, "first");
  });
  for (int i = 0; i < kCallers; ++i) {
    CHECK(same_bits(outputs[static_cast<std::size_t>(i)],
                    run_network(sample, *network, images(i), 1, "later")));
  }
}

// A child has none of its parent's threads, and starts its own. The parent goes on as before.
TEST(threads, fork_between_calls) {
  Random random;
  const Job job = make_job(random, *fp32_targets().front(), {40, 51, 3}, 3);
  CHECK(job.right(2));
  // This sanitizer ends a child that starts threads.
  const int threads = kThreadSanitizer ? 1 : 2;
  if (kThreadSanitizer)
    note("children run one thread only: the thread sanitizer does not let them start more");
  for (int i = 0; i < 3; ++i) {
    check_in_child("fork between calls",
                   [&] { return job.right(threads) && job.right(threads) && job.right(1); });
    CHECK(job.right(2));
  }
}

// fork() in the middle of other threads' calls: no lock may stay taken in the child.
TEST(threads, fork_during_calls) {
  Random random;
  const Job job = make_job(random, *fp32_targets().front(), {40, 51, 3}, 3);
  const int threads = kThreadSanitizer ? 1 : 2;
  std::atomic<bool> stop{false};
  std::vector<std::thread> callers;
  for (int i = 0; i < 2; ++i) {
    callers.emplace_back([&, i] {
      while (!stop) CHECK(job.right(1 + i));
    });
  }
  for (int i = 0; i < 2 * kRepeat; ++i) {
    check_in_child("fork during calls", [&] { return job.right(threads); });
  }
  stop = true;
  for (std::thread& caller : callers) caller.join();
}

// A child may have children.
TEST(threads, fork_in_a_child) {
  Random random;
  const Job job = make_job(random, *fp32_targets().front(), {40, 51, 3}, 1);
  const int threads = kThreadSanitizer ? 1 : 2;
  CHECK(job.right(2));
  check_in_child("fork", [&] {
    if (!job.right(threads)) return false;
    const pid_t grandchild = fork();
    if (grandchild == 0) _exit(job.right(threads) ? 0 : 1);
    int status = 0;
    return waitpid(grandchild, &status, 0) == grandchild && WIFEXITED(status) && WEXITSTATUS(status) == 0 &&
           job.right(threads);
  });
}

}  // namespace effv2::tests
