// Memory for the engine to run in: exactly as large as promised, filled with NaN, guarded on both sides.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <string>

#include "check.h"

#if defined(__SANITIZE_ADDRESS__)
#define EFFV2_ADDRESS_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define EFFV2_ADDRESS_SANITIZER 1
#endif
#endif
#ifdef EFFV2_ADDRESS_SANITIZER
#include <sanitizer/asan_interface.h>
#endif

namespace effv2::tests {

inline std::uint32_t bits_of(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// A NaN that arithmetic does not make: what still holds it was never written.
inline constexpr std::uint32_t kPoison = 0x7fc0beef;

// `floats` floats on a cache line of their own. Reading past an end gives NaN, writing there is found by
// check(); the address sanitizer stops at either.
class Guarded {
 public:
  explicit Guarded(std::int64_t floats) : floats_(floats), memory_(new float[whole()]) {
    const auto address = reinterpret_cast<std::uintptr_t>(memory_.get() + kGuard);
    data_ = memory_.get() + kGuard + (64 - address % 64) % 64 / sizeof(float);
    fill(memory_.get(), memory_.get() + whole());
    forbid_guards();
  }
  Guarded(Guarded&&) = default;
  ~Guarded() { allow_guards(); }

  float* data() const { return data_; }
  std::int64_t floats() const { return floats_; }

  void poison() { fill(data_, data_ + floats_); }
  // Values that a block may find from the one before: large, of either sign, and not NaN.
  void fill_with_garbage(std::uint32_t seed) {
    for (std::int64_t i = 0; i < floats_; ++i) {
      seed = seed * 1664525u + 1013904223u;
      data_[i] = (seed >> 31 ? 1e30f : -1e30f) * (1.0f + static_cast<float>(seed >> 8 & 0xffff));
    }
  }
  // Fails the test where a guard was overwritten.
  void check(const std::string& what) const {
    allow_guards();
    for (const float* p = memory_.get(); p < memory_.get() + whole(); ++p) {
      if (p == data_ && floats_) p += floats_;
      if (bits_of(*p) != kPoison) {
        fail(__FILE__, __LINE__,
             what + " was overrun: written at " + std::to_string(p - data_) + " of " +
                 std::to_string(floats_));
        break;
      }
    }
    forbid_guards();
  }
  // Floats that still hold the poison.
  std::int64_t unwritten() const {
    std::int64_t count = 0;
    for (std::int64_t i = 0; i < floats_; ++i) count += bits_of(data_[i]) == kPoison;
    return count;
  }
  bool same_bits(const Guarded& other) const {
    return floats_ == other.floats_ &&
           std::memcmp(data_, other.data_, static_cast<std::size_t>(floats_) * sizeof(float)) == 0;
  }

 private:
  static constexpr std::int64_t kGuard = 512;  // floats: more than a row of most maps in the tests

  std::size_t whole() const { return static_cast<std::size_t>(floats_ + 2 * kGuard + 16); }
  static void fill(float* begin, const float* end) {
    for (; begin < end; ++begin) std::memcpy(begin, &kPoison, sizeof kPoison);
  }
#ifdef EFFV2_ADDRESS_SANITIZER
  void forbid_guards() const {
    const char* begin = reinterpret_cast<const char*>(memory_.get());
    const char* end = reinterpret_cast<const char*>(memory_.get() + whole());
    const char* first = reinterpret_cast<const char*>(data_);
    const char* last = reinterpret_cast<const char*>(data_ + floats_);
    ASAN_POISON_MEMORY_REGION(begin, static_cast<std::size_t>(first - begin));
    ASAN_POISON_MEMORY_REGION(last, static_cast<std::size_t>(end - last));
  }
  void allow_guards() const {
    if (memory_) ASAN_UNPOISON_MEMORY_REGION(memory_.get(), whole() * sizeof(float));
  }
#else
  void forbid_guards() const {}
  void allow_guards() const {}
#endif

  std::int64_t floats_;
  std::unique_ptr<float[]> memory_;
  float* data_;
};

}  // namespace effv2::tests
