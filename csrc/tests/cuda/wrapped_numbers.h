// What the wrappers of cuda/device.h compute of numbers, and what words and kernels their tests are made of:
// see wrappers.h.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "cuda/device.h"
#include "storage/half.h"

namespace effv2::cuda::wrappers {

using Words = std::vector<std::uint32_t>;

// Of 32 threads: what is read, and room for what is written.
constexpr int kWords = 2048;
struct Buffers {
  const std::uint32_t* in;
  std::uint32_t* out;
  std::uint32_t* flags;  // zero at first
};
constexpr int kFlags = 4;

inline float float_of(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline std::uint32_t bits_of(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
// Reference conversions.
inline std::uint16_t bf16_of_float(float value) {
  const std::uint32_t bits = bits_of(value);
  return static_cast<std::uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}
template <class T>
std::uint16_t rounded(float value) {
  return kIsHalf<T> ? half_of_float(value) : bf16_of_float(value);
}
template <class T>
float exact(std::uint32_t bits) {
  const auto lower = static_cast<std::uint16_t>(bits);
  return kIsHalf<T> ? float_of_half(lower) : float_of(std::uint32_t{lower} << 16);
}
template <class T>
std::uint32_t pair(float low, float high) {
  return rounded<T>(low) | std::uint32_t{rounded<T>(high)} << 16;
}

// Whole numbers that differ, small enough for bf16 and for sums of their products in float.
inline int some(int i) { return (i * 37 + 11) % 61 - 30; }

// Floats between and at values of the format, and the ends of its range.
inline Words floats() {
  Words in(kWords);
  for (int i = 0; i < kWords; ++i) {
    const float value = std::ldexp(1.0f + static_cast<float>(some(i)) / 64, some(i / 61) / 3);
    in[i] = bits_of(value) + static_cast<std::uint32_t>(i % 5 - 2) * (i % 2 ? 0x1000u : 0x8000u);
  }
  const float ends[] = {0.0f, -0.0f, 65504.0f, 65519.0f, 65520.0f, 1e-8f, 6e-8f, -3e-8f, 3e38f};
  for (int i = 0; i < 9; ++i) in[i] = bits_of(ends[i]);
  return in;
}

template <class T>
EFFV2_KERNEL(32)
conversions(Buffers b) {
  for (int i = thread(); i < kWords / 2; i += 32) {
    const float x = load<float>(b.in + 2 * i), y = load<float>(b.in + 2 * i + 1);
    const Pair packed = pack<T>(x, y);
    store(b.out + 2 * i, packed);
    const T one = from_float<T>(y);
    store(b.out + 2 * i + 1, pack<T>(to_float(one), low<T>(packed) - high<T>(packed) == 0.0f ? 1.0f : 2.0f));
  }
}
template <class T>
Words expected_conversions(const Words& in) {
  Words out(kWords);
  for (int i = 0; i < kWords / 2; ++i) {
    const float x = float_of(in[2 * i]), y = float_of(in[2 * i + 1]);
    out[2 * i] = pair<T>(x, y);
    const bool same = exact<T>(rounded<T>(x)) - exact<T>(rounded<T>(y)) == 0.0f;
    out[2 * i + 1] = pair<T>(exact<T>(rounded<T>(y)), same ? 1.0f : 2.0f);
  }
  return out;
}

// Pairs of the format.
template <class T>
Words pairs() {
  Words in = floats();
  for (int i = 0; i < kWords; ++i) {
    const float x = std::fmod(float_of(in[i]), 200.0f), y = std::fmod(float_of(in[(i + 7) % kWords]), 3.0f);
    in[i] = pair<T>(i % 3 ? x : -x, i % 2 ? y : -y);
  }
  return in;
}
template <class T>
EFFV2_KERNEL(32)
arithmetic(Buffers b) {
  for (int i = thread(); i < kWords / 4; i += 32) {
    const Pair x = load<Pair>(b.in + i), y = load<Pair>(b.in + i + 1), z = load<Pair>(b.in + i + 2);
    store(b.out + 4 * i, fma2<T>(x, y, z));
    store(b.out + 4 * i + 1, mul2<T>(x, y));
    store(b.out + 4 * i + 2, min2<T>(x, y));
    store(b.out + 4 * i + 3, max2<T>(x, y));
  }
}
template <class T>
Words expected_arithmetic(const Words& in) {
  Words out(kWords);
  const auto both = [](auto f, std::uint32_t x, std::uint32_t y, std::uint32_t z) {
    const auto one = [&](int shift) -> std::uint32_t {
      const double v = f(exact<T>(x >> shift), exact<T>(y >> shift), exact<T>(z >> shift));
      // Rounded once: a float that is not exact is made odd.
      float nearest = static_cast<float>(v);
      if (static_cast<double>(nearest) != v && !(bits_of(nearest) & 1u)) {
        nearest = float_of(std::fabs(nearest) < std::fabs(v) ? bits_of(nearest) + 1 : bits_of(nearest) - 1);
      }
      return rounded<T>(nearest);
    };
    return one(0) | one(16) << 16;
  };
  for (int i = 0; i < kWords / 4; ++i) {
    const std::uint32_t x = in[i], y = in[i + 1], z = in[i + 2];
    out[4 * i] = both([](double p, double q, double r) { return std::fma(p, q, r); }, x, y, z);
    out[4 * i + 1] = both([](double p, double q, double) { return p * q; }, x, y, z);
    out[4 * i + 2] = both([](double p, double q, double) { return p < q ? p : q; }, x, y, z);
    out[4 * i + 3] = both([](double p, double q, double) { return p > q ? p : q; }, x, y, z);
  }
  return out;
}

EFFV2_KERNEL(32) approximations(Buffers b) {
  for (int i = thread(); i < kWords / 4; i += 32) {
    const float x = load<float>(b.in + i);
    store(b.out + 4 * i, tanh_fast(x));
    store(b.out + 4 * i + 1, exp2_fast(x));
    store(b.out + 4 * i + 2, tanh2(pack<Half>(x, -x)));
    store(b.out + 4 * i + 3, Pair{0});
  }
}
EFFV2_KERNEL(32) ends(Buffers b) {
  for (int i = thread(); i < kWords / 8; i += 32) {
    const float x = load<float>(b.in + i);
    store(b.out + 8 * i, tanh_fast(x));
    store(b.out + 8 * i + 1, exp2_fast(x));
    store(b.out + 8 * i + 2, tanh2(pack<Half>(x, -x)));
    store(b.out + 8 * i + 3, min2<Half>(pack<Half>(x, 2.0f), pack<Half>(1.0f, x)));
    store(b.out + 8 * i + 4, max2<Half>(pack<Half>(x, 2.0f), pack<Half>(1.0f, x)));
  }
}
inline Words infinities() {
  constexpr std::uint32_t kEnds[] = {0x7f800000u, 0xff800000u, 0x7fc00000u, 0xc3020000u};  // inf, NaN, -130
  Words in(kWords);
  for (int i = 0; i < kWords; ++i) in[i] = kEnds[i % 4];
  return in;
}
inline std::string wrong_ends(const Words& in, const Words& out) {
  const auto differs = [](float found, double right) {
    if (!std::isfinite(right))
      return std::isnan(right) ? !std::isnan(found) : static_cast<double>(found) != right;
    return !(std::fabs(found - right) <= 0x1p-9 * std::fabs(right));
  };
  for (int i = 0; i < kWords / 8; ++i) {
    const float x = float_of(in[i]);
    const std::string at = "(" + std::to_string(x) + ")";
    const auto half = [&](int word, int shift) { return exact<Half>(out[8 * i + word] >> shift); };
    if (differs(float_of(out[8 * i]), std::tanh(x))) return "tanh_fast" + at;
    if (differs(float_of(out[8 * i + 1]), x < 0 ? 0 : x)) return "exp2_fast" + at;
    if (differs(half(2, 0), std::tanh(x)) || differs(half(2, 16), std::tanh(-x))) return "tanh2" + at;
    if (differs(half(3, 0), std::fmin(x, 1)) || differs(half(3, 16), std::fmin(2, x))) return "min2" + at;
    const auto largest = [x](float y) { return x == x ? std::fmax(x, y) : x; };
    if (differs(half(4, 0), largest(1)) || differs(half(4, 16), largest(2))) return "max2" + at;
  }
  return "";
}
inline Words moderate() {
  Words in(kWords);
  for (int i = 0; i < kWords; ++i)
    in[i] = bits_of(static_cast<float>(some(i)) / 7 + static_cast<float>(i) / 4096);
  return in;
}
inline std::string wrong_approximations(const Words& in, const Words& out) {
  for (int i = 0; i < kWords / 4; ++i) {
    const double x = float_of(in[i]), h = exact<Half>(rounded<Half>(float_of(in[i])));
    const auto near = [](double found, double right, double relative) {
      return std::fabs(found - right) <= relative * std::fabs(right) + 1e-30;
    };
    if (!near(float_of(out[4 * i]), std::tanh(x), 0x1p-10)) return "tanh_fast(" + std::to_string(x) + ")";
    if (!near(float_of(out[4 * i + 1]), std::exp2(x), 0x1p-21)) return "exp2_fast(" + std::to_string(x) + ")";
    if (!near(exact<Half>(out[4 * i + 2]), std::tanh(h), 0x1p-9)) return "tanh2(" + std::to_string(h) + ")";
    if (!near(exact<Half>(out[4 * i + 2] >> 16), -std::tanh(h), 0x1p-9)) return "tanh2, upper half";
  }
  return "";
}

}  // namespace effv2::cuda::wrappers
