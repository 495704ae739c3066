// Registration and checks of the native tests: TEST(group, name) { ... CHECK(...); }.
#pragma once

#include <cstdint>
#include <string>

#if defined(__SANITIZE_THREAD__)
#define EFFV2_THREAD_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define EFFV2_THREAD_SANITIZER 1
#endif
#endif

namespace effv2::tests {

struct Registration {
  Registration(const char* group, const char* name, void (*body)());
};

#define TEST(group, name)                                                                                 \
  static void group##_##name();                                                                           \
  static const ::effv2::tests::Registration registration_##group##_##name{#group, #name, group##_##name}; \
  static void group##_##name()

// Counts and prints a failure of the running test, which goes on. From any thread.
void fail(const char* file, int line, const std::string& what);
// So far, in this process.
int failures();

#define CHECK(condition)                                                    \
  do {                                                                      \
    if (!(condition)) ::effv2::tests::fail(__FILE__, __LINE__, #condition); \
  } while (false)
#define CHECK_THAT(condition, what)                                     \
  do {                                                                  \
    if (!(condition)) ::effv2::tests::fail(__FILE__, __LINE__, (what)); \
  } while (false)

// Prints a line about the running test, e.g. what it leaves out and why.
void note(const std::string& what);

// A number that depends on the seed of this run and on the running test alone.
std::uint64_t test_seed();

}  // namespace effv2::tests
