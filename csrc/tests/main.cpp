// Runs the tests whose "group.name" contains one of the words given, or all.
//
//   effv2_native_tests [--seed N] [--list] [word ...]
//
// The seed is fresh in every run unless --seed or EFFV2_TEST_SEED gives it. A test that takes longer
// than kTimeLimit seconds ends the program: it hangs.
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <random>
#include <string>
#include <vector>

#include "check.h"

namespace effv2::tests {
namespace {

constexpr unsigned kTimeLimit = 240;
// Failures printed per test; one wrong index fails for every ISA and team.
constexpr int kMostPrinted = 12;

struct Test {
  const char* group;
  const char* name;
  void (*body)();
  std::string full_name() const { return std::string(group) + "." + name; }
};

std::vector<Test>& registered() {
  static std::vector<Test> tests;
  return tests;
}

std::uint64_t run_seed = 0;
std::string running = "(no test)";
std::atomic<int> failed_checks{0};

// Mixes the seed with a name, so that a test's numbers depend neither on other tests nor on their order.
std::uint64_t mixed(std::uint64_t seed, const std::string& name) {
  std::uint64_t hash = 14695981039346656037u ^ seed;  // FNV-1a
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211u;
  return hash;
}

// Only async-signal-safe calls: the program may be stuck anywhere.
void timed_out(int) {
  const auto print = [](const char* text) {
    const auto written = write(STDERR_FILENO, text, std::strlen(text));
    static_cast<void>(written);
  };
  print("FAILED ");
  print(running.c_str());
  print(": still running at the time limit\n");
  _exit(3);
}

bool named(const Test& test, const std::vector<std::string>& words) {
  for (const std::string& word : words) {
    if (test.full_name().find(word) != std::string::npos) return true;
  }
  return false;
}

std::uint64_t number(const char* text) {
  char* end = nullptr;
  const std::uint64_t value = std::strtoull(text, &end, 10);
  if (end == text || *end) {
    std::fprintf(stderr, "the seed must be a number, not '%s'\n", text);
    std::exit(2);
  }
  return value;
}

void run(const Test& test) {
  running = test.full_name();
  const int before = failures();
  const auto start = std::chrono::steady_clock::now();
  alarm(kTimeLimit);
  try {
    test.body();
  } catch (const std::exception& error) {
    fail(__FILE__, __LINE__, std::string("unexpected exception: ") + error.what());
  }
  alarm(0);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  const int failed = failures() - before;
  std::printf("%-6s %-58s %7.2f s\n", failed ? "FAILED" : "ok", running.c_str(), seconds);
  if (failed > kMostPrinted) std::printf("       %d failures in all\n", failed);
  std::fflush(stdout);
}

struct Options {
  std::vector<std::string> words, without;
  bool list = false;
};

int main_with(const Options& options) {
  const bool list = options.list;
  int ran = 0, failed_tests = 0;
  if (!list) std::printf("seed of random inputs: %llu\n", static_cast<unsigned long long>(run_seed));
  std::fflush(stdout);
  std::signal(SIGALRM, timed_out);
  for (const Test& test : registered()) {
    if (!options.words.empty() && !named(test, options.words)) continue;
    if (named(test, options.without)) continue;
    ++ran;
    if (list) {
      std::printf("%s\n", test.full_name().c_str());
      continue;
    }
    const int before = failures();
    run(test);
    failed_tests += failures() != before;
  }
  if (ran == 0) {
    std::fprintf(stderr, "no test has such a name; --list prints them\n");
    return 2;
  }
  if (failed_tests) {
    std::printf("%d of %d tests failed; --seed %llu repeats this run\n", failed_tests, ran,
                static_cast<unsigned long long>(run_seed));
  }
  return failed_tests ? 1 : 0;
}

}  // namespace

Registration::Registration(const char* group, const char* name, void (*body)()) {
  registered().push_back({group, name, body});
}

void fail(const char* file, int line, const std::string& what) {
  static std::atomic<int> printed{0};
  static std::atomic<const char*> last{nullptr};
  // The same test goes on printing only so often.
  if (last.exchange(running.c_str()) != running.c_str()) printed = 0;
  ++failed_checks;
  if (++printed > kMostPrinted) return;
  const char* name = std::strrchr(file, '/');
  std::printf("       %s:%d: %s\n", name ? name + 1 : file, line, what.c_str());
  std::fflush(stdout);
}

int failures() { return failed_checks; }

void note(const std::string& what) {
  std::printf("       %s\n", what.c_str());
  std::fflush(stdout);
}

std::uint64_t test_seed() { return mixed(run_seed, running); }

}  // namespace effv2::tests

int main(int argc, char** argv) {
  using namespace effv2::tests;
  Options options;
  const char* given = std::getenv("EFFV2_TEST_SEED");
  run_seed = given && *given ? number(given) : std::random_device{}() & 0x7fffffffu;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--list") == 0) {
      options.list = true;
    } else if (std::strcmp(argv[i], "--seed") == 0 && i + 1 < argc) {
      run_seed = number(argv[++i]);
    } else if (std::strcmp(argv[i], "--without") == 0 && i + 1 < argc) {
      options.without.emplace_back(argv[++i]);
    } else if (argv[i][0] == '-') {
      std::fprintf(stderr, "usage: %s [--seed N] [--list] [--without WORD] [word ...]\n", argv[0]);
      return 2;
    } else {
      options.words.emplace_back(argv[i]);
    }
  }
  return main_with(options);
}
