#include "engine/threads.h"

#include <pthread.h>
#include <sched.h>
#ifdef __linux__
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <atomic>
#include <chrono>
#include <climits>
#include <condition_variable>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#include "engine/pace.h"
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
// How long one spins for its team before it sleeps; and how long where the team was found to share this
// thread's processor, so that spinning only keeps the others from arriving.
constexpr int kTeamSpin = 200;
constexpr int kSharedSpin = 2;
constexpr int kMostThreads = 256;

std::atomic<int> pretended_cpus{0};
std::atomic<Pace*> current_pace{nullptr};

using Word = std::atomic<std::uint32_t>;

int this_processor() {
#ifdef __linux__
  return sched_getcpu();
#else
  return -1;
#endif
}

thread_local int team_spin = kTeamSpin;

// After a sleep: whether to spin the next time depends on where the one ran that was waited for.
void adapt_spin(int other_processor) {
  const int mine = this_processor();
  team_spin = mine >= 0 && mine == other_processor ? kSharedSpin : kTeamSpin;
}

// Sleeps while *word == value, until woken; may also return earlier. It must be sleep and not
// sched_yield(): where two threads of a team have come to share a processor, yielding keeps both busy
// there and the scheduler leaves them together, but a thread that wakes is placed on an idle one.
void sleep_while(Word& word, std::uint32_t value) {
#ifdef __linux__
  static_assert(sizeof(Word) == sizeof(std::uint32_t), "a futex is a plain 32-bit word");
  syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
#else
  if (word.load(std::memory_order_relaxed) == value) sched_yield();
#endif
}

// Only the address is used: the word itself may be gone.
void wake_all(Word* word) {
#ifdef __linux__
  syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
#else
  static_cast<void>(word);
#endif
}

// One call of run_on_threads. It ends, and its memory with it, as soon as `running` has no helper left.
struct Work {
  static constexpr std::uint32_t kAsleep = 1u << 31;  // in `running`: the caller sleeps

  void (*job)(void*, int, int);
  void* argument;
  int size;
  Word running;  // helpers that have not finished
  std::atomic<int> last_processor;

  void helper_done() {
    Word* word = &running;
    last_processor.store(this_processor(), std::memory_order_relaxed);
    if (word->fetch_sub(1, std::memory_order_acq_rel) == (kAsleep | 1)) wake_all(word);
  }
  void wait_for_helpers() {
    if (spin([&] { return running.load(std::memory_order_acquire) > 0; }, team_spin)) return;
    std::uint32_t now = running.fetch_or(kAsleep, std::memory_order_acq_rel) | kAsleep;
    for (; now != kAsleep; now = running.load(std::memory_order_acquire)) sleep_while(running, now);
    adapt_spin(last_processor.load(std::memory_order_relaxed));
  }
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
      work->helper_done();
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

// When the library is loaded: later, another thread could hold the mutex during the first fork.
[[maybe_unused]] const int registered = pthread_atfork(lock_before_fork, unlock_in_parent, forget_in_child);

// Starts workers until there are `count`, or as many as the system allows. With fork_safe_mutex() held.
void start_workers(int count) {
  if (!workers) {
    workers = new std::vector<Worker*>;
    workers->reserve(kMostThreads);
  }
  try {
    while (static_cast<int>(workers->size()) < count) workers->push_back(new Worker);
  } catch (const std::system_error&) {
    // No more threads may be started: those that are there do the work.
  } catch (const std::bad_alloc&) {
    // Or there is no memory for them.
  }
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
    last_processor_.store(this_processor(), std::memory_order_relaxed);
    // Sequentially consistent, as is the sleeper's side: either it is seen here, or it sees the new
    // generation.
    generation_.store(generation + 1, std::memory_order_seq_cst);
    if (sleeping_.load(std::memory_order_seq_cst) > 0) wake_all(&generation_);
  } else if (!spin([&] { return generation_.load(std::memory_order_acquire) == generation; }, team_spin)) {
    sleeping_.fetch_add(1, std::memory_order_seq_cst);
    while (generation_.load(std::memory_order_seq_cst) == generation) sleep_while(generation_, generation);
    sleeping_.fetch_sub(1, std::memory_order_relaxed);
    adapt_spin(last_processor_.load(std::memory_order_relaxed));
  }
}

void Team::meet() const {
  if (pace) pace->meets(*this);
  barrier->arrive_and_wait();
}

void pretend_pace(Pace* pace) { current_pace = pace; }
Pace* pretended_pace() { return current_pace; }

void pretend_cpus(int count) { pretended_cpus = count; }

int usable_cpus() {
  if (const int pretended = pretended_cpus) return pretended;
#ifdef __linux__
  // std::thread::hardware_concurrency() does not heed the affinity mask with every version of glibc.
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) return CPU_COUNT(&allowed);
#endif
  const unsigned count = std::thread::hardware_concurrency();
  return count ? static_cast<int>(count) : 1;
}

std::vector<int> usable_processors() {
  std::vector<int> processors;
#ifdef __linux__
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return processors;
  for (int processor = 0; processor < CPU_SETSIZE; ++processor) {
    if (CPU_ISSET(processor, &allowed)) processors.push_back(processor);
  }
#endif
  return processors;
}

void run_on_threads(int threads, void (*job)(void*, int, int), void* argument) {
  const int cpus = usable_cpus();
  if (threads > cpus) threads = cpus;

  if (threads > kMostThreads) threads = kMostThreads;
  Worker* team[kMostThreads];
  int helpers = 0;
  if (threads > 1) {
    const std::lock_guard<std::mutex> lock(fork_safe_mutex());
    start_workers(threads - 1);
    for (Worker* worker : *workers) {
      if (helpers == threads - 1) break;
      if (!worker->idle) continue;
      worker->idle = false;
      team[helpers++] = worker;
    }
  }
  const int size = helpers + 1;
  Work work{job, argument, size, {static_cast<std::uint32_t>(helpers)}, {-1}};
  for (int i = 0; i < helpers; ++i) team[i]->start(&work, i + 1);
  job(argument, 0, size);
  if (size == 1) return;
  work.wait_for_helpers();
  const std::lock_guard<std::mutex> lock(fork_safe_mutex());
  for (int i = 0; i < helpers; ++i) team[i]->idle = true;
}

}  // namespace effv2
