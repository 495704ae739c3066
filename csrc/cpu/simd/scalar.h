// Portable C++: vectors are arrays of 4 floats, which any compiler can turn into what its target has.
#pragma once

#include <cstdint>
#include <cstring>

namespace effv2::EFFV2_TARGET {

inline constexpr int kLanes = 4;
struct Vec {
  float lane[kLanes];
};
inline constexpr int kGeluVectors = 1;
inline constexpr int kGeluGroups = 1;
inline constexpr int kSumVectors = 1;    // of a softmax's total
inline constexpr int kTogether = 1;      // pixels of a depthwise convolution, beside its nine weights
inline constexpr int kRowsTogether = 1;  // of its outputs

template <class Function>
inline Vec per_lane(Function f) {
  Vec r;
  for (int i = 0; i < kLanes; ++i) r.lane[i] = f(i);
  return r;
}

inline Vec set1(float value) {
  return per_lane([&](int) { return value; });
}
inline Vec zero() { return set1(0.0f); }
inline Vec broadcast(const float* p) { return set1(*p); }
inline Vec load(const float* p) {
  Vec v;
  std::memcpy(v.lane, p, sizeof v.lane);
  return v;
}
inline void store(float* p, Vec v) { std::memcpy(p, v.lane, sizeof v.lane); }
inline void keep(Vec&) {}
inline void prefetch(const void*) {}
inline Vec load_n(const float* p, int count) {
  return per_lane([&](int i) { return i < count ? p[i] : 0.0f; });
}
inline void store_n(float* p, Vec v, int count) {
  for (int i = 0; i < kLanes && i < count; ++i) p[i] = v.lane[i];
}

inline Vec add(Vec a, Vec b) {
  return per_lane([&](int i) { return a.lane[i] + b.lane[i]; });
}
inline Vec sub(Vec a, Vec b) {
  return per_lane([&](int i) { return a.lane[i] - b.lane[i]; });
}
inline Vec mul(Vec a, Vec b) {
  return per_lane([&](int i) { return a.lane[i] * b.lane[i]; });
}
inline Vec div(Vec a, Vec b) {
  return per_lane([&](int i) { return a.lane[i] / b.lane[i]; });
}
// Two roundings: a correctly rounded fma without the instruction is a library call.
inline Vec fma(Vec a, Vec b, Vec c) {
  return per_lane([&](int i) { return a.lane[i] * b.lane[i] + c.lane[i]; });
}
inline Vec fnma(Vec a, Vec b, Vec c) {  // c - a * b
  return per_lane([&](int i) { return c.lane[i] - a.lane[i] * b.lane[i]; });
}
// NaN where b is. Where a alone is NaN, what x86 makes of it and what Arm makes differ.
inline Vec max(Vec a, Vec b) {
  return per_lane([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
}
inline Vec min(Vec a, Vec b) {
  return per_lane([&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
}
inline Vec abs(Vec v) {
  return per_lane([&](int i) { return v.lane[i] < 0.0f ? -v.lane[i] : v.lane[i]; });
}

inline std::uint32_t bits(float value) {
  std::uint32_t u;
  std::memcpy(&u, &value, sizeof u);
  return u;
}
// p * 2^n for n given as a float whose low mantissa bits hold the integer (n + 1.5 * 2^23).
inline Vec scale_by_power(Vec p, Vec n_shifted) {
  return per_lane([&](int i) {
    const std::uint32_t u = bits(p.lane[i]) + (bits(n_shifted.lane[i]) << 23);
    float r;
    std::memcpy(&r, &u, sizeof r);
    return r;
  });
}
// v where x >= limit or x is NaN, else 0.
inline Vec zero_below(Vec v, Vec x, Vec limit) {
  return per_lane([&](int i) { return x.lane[i] < limit.lane[i] ? 0.0f : v.lane[i]; });
}

inline float reduce_add(Vec v) { return (v.lane[0] + v.lane[2]) + (v.lane[1] + v.lane[3]); }
inline float reduce_max(Vec v) {
  float m = v.lane[0];
  for (int i = 1; i < kLanes; ++i) m = v.lane[i] > m ? v.lane[i] : m;
  return m;
}

}  // namespace effv2::EFFV2_TARGET
