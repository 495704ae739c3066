#include "engine/threads.h"

#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <thread>
#include <vector>

#include "engine/team.h"

namespace effv2 {
namespace {

inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Spins while keep_waiting() holds, for at most about `microseconds`; true if it ended in time.
template <class Condition>
bool spin(Condition keep_waiting, int microseconds) {
  const auto start = std::chrono::steady_clock::now();
  while (true) {
    for (int i = 0; i < 64; ++i) {
      if (!keep_waiting()) return true;
      relax();
    }
    if (std::chrono::steady_clock::now() - start > std::chrono::microseconds(microseconds)) return false;
  }
}

// How long an idle worker spins before it sleeps: longer than the gap between two calls in a loop.
constexpr int kIdleSpin = 100;
// How long one spins for its team before it yields the processor to whoever is late.
constexpr int kTeamSpin = 200;
constexpr int kMostThreads = 256;

template <class Condition>
void wait_while(Condition keep_waiting) {
  if (spin(keep_waiting, kTeamSpin)) return;
  while (keep_waiting()) sched_yield();
}

struct Work {
  void (*job)(void*, int, int);
  void* argument;
  int size;
  std::atomic<int> running;
};

class Worker {
 public:
  Worker() : thread_([this] { loop(); }) { thread_.detach(); }

  void start(Work* work, int rank) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      work_ = work;
      rank_ = rank;
      tickets_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_one();
  }

  bool idle = true;  // guarded by fork_safe_mutex()

 private:
  void loop() {
    for (unsigned seen = 0;; ++seen) {
      const auto nothing = [&] { return tickets_.load(std::memory_order_acquire) == seen; };
      if (!spin(nothing, kIdleSpin)) {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return !nothing(); });
      }
      Work* work = work_;
      work->job(work->argument, rank_, work->size);
      work->running.fetch_sub(1, std::memory_order_release);
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<unsigned> tickets_{0};
  Work* work_ = nullptr;
  int rank_ = 0;
  std::thread thread_;
};

// Workers are never destroyed: at exit they may still be asleep, and in a child after fork() they do
// not exist. The list is simply forgotten there.
std::vector<Worker*>* workers = nullptr;

void lock_before_fork() { fork_safe_mutex().lock(); }
void unlock_in_parent() { fork_safe_mutex().unlock(); }
void forget_in_child() {
  workers = nullptr;
  fork_safe_mutex().unlock();
}

}  // namespace

std::mutex& fork_safe_mutex() {
  static std::mutex* mutex = new std::mutex;  // outlives everything
  return *mutex;
}

void Barrier::arrive_and_wait() {
  const std::uint32_t generation = generation_.load(std::memory_order_relaxed);
  if (waiting_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_.load(std::memory_order_relaxed)) {
    waiting_.store(0, std::memory_order_relaxed);
    generation_.store(generation + 1, std::memory_order_release);
  } else {
    wait_while([&] { return generation_.load(std::memory_order_acquire) == generation; });
  }
}

int usable_cpus() {
#ifdef __linux__
  // std::thread::hardware_concurrency() does not heed the affinity mask with every version of glibc.
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) return CPU_COUNT(&allowed);
#endif
  const unsigned count = std::thread::hardware_concurrency();
  return count ? static_cast<int>(count) : 1;
}

void run_on_threads(int threads, void (*job)(void*, int, int), void* argument) {
  static const int registered = pthread_atfork(lock_before_fork, unlock_in_parent, forget_in_child);
  static_cast<void>(registered);
  const int cpus = usable_cpus();
  if (threads > cpus) threads = cpus;

  if (threads > kMostThreads) threads = kMostThreads;
  Worker* team[kMostThreads];
  int helpers = 0;
  if (threads > 1) {
    const std::lock_guard<std::mutex> lock(fork_safe_mutex());
    if (!workers) workers = new std::vector<Worker*>;
    while (static_cast<int>(workers->size()) < threads - 1) workers->push_back(new Worker);
    for (Worker* worker : *workers) {
      if (helpers == threads - 1) break;
      if (!worker->idle) continue;
      worker->idle = false;
      team[helpers++] = worker;
    }
  }
  const int size = helpers + 1;
  Work work{job, argument, size, {helpers}};
  for (int i = 0; i < helpers; ++i) team[i]->start(&work, i + 1);
  job(argument, 0, size);
  if (size == 1) return;
  wait_while([&] { return work.running.load(std::memory_order_acquire) > 0; });
  const std::lock_guard<std::mutex> lock(fork_safe_mutex());
  for (int i = 0; i < helpers; ++i) team[i]->idle = true;
}

}  // namespace effv2
