// What threads spend on blocks.
#pragma once

#include <cstdint>

namespace effv2 {

struct Effort {
  double seconds;
  std::int64_t multiply_adds;  // only targets that count them add to these
  std::int64_t meetings;       // of its team

  Effort operator-(const Effort& earlier) const {
    return {seconds - earlier.seconds, multiply_adds - earlier.multiply_adds, meetings - earlier.meetings};
  }
  Effort operator*(int times) const { return {times * seconds, times * multiply_adds, times * meetings}; }
  Effort& operator+=(const Effort& other) {
    seconds += other.seconds;
    multiply_adds += other.multiply_adds;
    meetings += other.meetings;
    return *this;
  }
};

// By this thread, up to now.
inline thread_local std::int64_t counted_multiply_adds = 0;

}  // namespace effv2
