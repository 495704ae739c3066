// One test for every wrapper of cuda/device.h, by its definition: the first thing that a GPU is asked, and
// what the emulator is held to. Each is a kernel of one or two blocks of a warp, what it reads, and what must
// come of it.
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

// --- Numbers ---------------------------------------------------------------------------------------------

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
    store(b.out + 4 * i + 3, Pair{0});
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

// --- Memory ----------------------------------------------------------------------------------------------

struct alignas(8) Two {
  std::uint32_t x, y;
};
struct alignas(16) Four {
  std::uint32_t x, y, z, w;
};

inline Words numbers() {
  Words in(kWords);
  for (int i = 0; i < kWords; ++i) in[i] = static_cast<std::uint32_t>(i) * 2654435761u;
  return in;
}
inline Words as_they_are(const Words& in) { return in; }

// Through shared memory, by vectors of each width, to the thread on the other side.
EFFV2_KERNEL(32) memory(Buffers b) {
  Shared shared;
  char* const bytes = shared.take<char>(3);
  std::uint32_t* const box = shared.take<std::uint32_t>(kWords);
  for (int i = thread(); i < kWords / 4; i += 32) {
    if (i % 4 == 0) store(box + 4 * i, load<Four>(b.in + 4 * i));
    if (i % 4 == 1)
      store(box + 4 * i, load<Two>(b.in + 4 * i)),
          store(box + 4 * i + 2, load_constant<Two>(b.in + 4 * i + 2));
    for (int j = 0; j < 4; ++j) {
      if (i % 4 == 2) store(box + 4 * i + j, load_constant<std::uint32_t>(b.in + 4 * i + j));
      if (i % 4 != 3) continue;
      const auto* const from = reinterpret_cast<const std::uint16_t*>(b.in + 4 * i + j);
      auto* const to = reinterpret_cast<std::uint16_t*>(box + 4 * i + j);
      store(to, load<std::uint16_t>(from)), store(to + 1, load<std::uint16_t>(from + 1));
    }
  }
  if (thread() == 0) store(bytes, static_cast<char>(1));
  sync();
  for (int i = 31 - thread(); i < kWords; i += 32) store(b.out + i, load<std::uint32_t>(box + i));
}

// In two stages; of every second group of four words zeros.
EFFV2_KERNEL(32) copies(Buffers b) {
  Shared shared;
  std::uint32_t* const boxes[] = {shared.take<std::uint32_t>(128), shared.take<std::uint32_t>(128)};
  const int steps = kWords / 128;
  const auto begin = [&](int step) {
    const int at = 4 * thread();
    if (step < steps) copy_async(boxes[step % 2] + at, b.in + 128 * step + at, thread() % 2 == 0);
    copy_commit();
  };
  begin(0);
  for (int step = 0; step < steps; ++step) {
    begin(step + 1);
    copy_wait<1>();
    sync();
    for (int i = 31 - thread(); i < 128; i += 32)
      store(b.out + 128 * step + i, load<std::uint32_t>(boxes[step % 2] + i));
    sync();
  }
  copy_wait<0>();
}
inline Words expected_copies(const Words& in) {
  Words out = in;
  for (int i = 0; i < kWords; ++i) {
    if (i / 4 % 2) out[i] = 0;
  }
  return out;
}

// Two blocks: the second copies what the first has written behind a flag, and both count.
EFFV2_KERNEL(32) between_blocks(Buffers b) {
  if (block() == 0) {
    for (int i = thread(); i < kWords / 2; i += 32) store(b.out + i, load<std::uint32_t>(b.in + i));
    sync();
    if (thread() == 0) release_add(b.flags, 3);
  } else {
    if (thread() == 0) acquire_reached(b.flags, 3);
    sync();
    for (int i = 31 - thread(); i < kWords / 2; i += 32) {
      store(b.out + kWords / 2 + i, load<std::uint32_t>(b.out + i));
    }
  }
  fetch_add(reinterpret_cast<int*>(b.flags + 1), thread());
}
inline Words expected_between_blocks(const Words& in) {
  Words out = in;
  for (int i = 0; i < kWords / 2; ++i) out[kWords / 2 + i] = in[i];
  return out;
}

// --- Instructions of a warp ------------------------------------------------------------------------------

// a of 16 x 16 row by row, b of 16 x 8 row by row, both as pairs; out: c of 16 x 8 after two steps.
template <class T>
Words matrices() {
  Words in(kWords, 0);
  for (int i = 0; i < 192; ++i)
    in[i] = pair<T>(static_cast<float>(some(2 * i)), static_cast<float>(some(2 * i + 1)));
  return in;
}
template <class T>
EFFV2_KERNEL(32)
products(Buffers b) {
  const int g = thread() / 4, t = thread() % 4;
  const auto a_pair = [&](int row, int column) { return load<Pair>(b.in + row * 8 + column / 2); };
  const auto b_one = [&](int row, int column) {
    const Pair both = load<Pair>(b.in + 128 + row * 4 + column / 2);
    return column % 2 ? high<T>(both) : low<T>(both);
  };
  const auto b_pair = [&](int row) { return pack<T>(b_one(row, g), b_one(row + 1, g)); };
  const Pair a[4] = {a_pair(g, 2 * t), a_pair(g + 8, 2 * t), a_pair(g, 2 * t + 8), a_pair(g + 8, 2 * t + 8)};
  float d[4] = {0.5f, 0.25f, 1.0f, 2.0f};
  for (int step = 0; step < 2; ++step) mma<T>(d, a, b_pair(2 * t), b_pair(2 * t + 8));
  for (int i = 0; i < 4; ++i) store(b.out + (g + 8 * (i / 2)) * 8 + 2 * t + i % 2, d[i]);
  for (int i = 128 + thread(); i < kWords; i += 32) store(b.out + i, std::uint32_t{0});
}
template <class T>
Words expected_products(const Words& in) {
  Words out(kWords, 0);
  const auto at = [&](int first, int row, int columns, int column) {
    return exact<T>(in[first + (row * columns + column) / 2] >> (column % 2 ? 16 : 0));
  };
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 8; ++column) {
      float sum = row < 8 ? (column % 2 ? 0.25f : 0.5f) : (column % 2 ? 2.0f : 1.0f);
      for (int k = 0; k < 16; ++k) sum += 2 * at(0, row, 16, k) * at(128, k, 8, column);
      out[row * 8 + column] = bits_of(sum);
    }
  }
  return out;
}

// 32 rows of 8 values, 80 bytes apart.
template <bool Transposed>
EFFV2_KERNEL(32)
matrix_loads(Buffers b) {
  Shared shared;
  std::uint32_t* const rows = shared.take<std::uint32_t>(32 * 20);
  for (int i = 0; i < 20; ++i) store(rows + 20 * thread() + i, load<std::uint32_t>(b.in + 20 * thread() + i));
  sync_warp();
  Pair r[4];
  load_matrices<Transposed>(r, rows + 20 * thread());
  for (int i = 0; i < 4; ++i) store(b.out + 4 * thread() + i, r[i]);
  for (int i = 128 + thread(); i < kWords; i += 32) store(b.out + i, std::uint32_t{0});
}
template <bool Transposed>
Words expected_matrix_loads(const Words& in) {
  Words out(kWords, 0);
  const auto at = [&](int matrix, int row, int column) -> std::uint32_t {
    return in[20 * (8 * matrix + row) + column / 2] >> (column % 2 ? 16 : 0) & 0xffffu;
  };
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i) {
      out[4 * lane + i] = Transposed ? at(i, 2 * t, g) | at(i, 2 * t + 1, g) << 16
                                     : at(i, g, 2 * t) | at(i, g, 2 * t + 1) << 16;
    }
  }
  return out;
}

EFFV2_KERNEL(32) shuffles(Buffers b) {
  for (int i = thread(); i < kWords; i += 64) {
    const std::uint32_t mine = load<std::uint32_t>(b.in + i);
    store(b.out + i, shuffle_xor(mine, i / 64));
    store(b.out + i + 32, shuffle(mine, (i / 64 * 7 + thread() * 3) % 32));
  }
}
inline Words expected_shuffles(const Words& in) {
  Words out(kWords);
  for (int i = 0; i < kWords; i += 64) {
    for (int lane = 0; lane < 32; ++lane) {
      out[i + lane] = in[i + (lane ^ (i / 64 & 31))];
      out[i + lane + 32] = in[i + (i / 64 * 7 + lane * 3) % 32];
    }
  }
  return out;
}

// Calls test(name, blocks, kernel, in, what is wrong with out) for each.
template <class Test>
void for_each_wrapper(Test test) {
  const auto same = [](Words (*expected)(const Words&)) {
    return [expected](const Words& in, const Words& out) -> std::string {
      const Words right = expected(in);
      for (int i = 0; i < kWords; ++i) {
        if (out[i] != right[i]) {
          return "word " + std::to_string(i) + " is " + std::to_string(out[i]) + ", not " +
                 std::to_string(right[i]);
        }
      }
      return "";
    };
  };
  test("conversions of halves", 1, conversions<Half>, floats(), same(expected_conversions<Half>));
  test("conversions of bf16", 1, conversions<Bf16>, floats(), same(expected_conversions<Bf16>));
  test("arithmetic of halves", 1, arithmetic<Half>, pairs<Half>(), same(expected_arithmetic<Half>));
  test("arithmetic of bf16", 1, arithmetic<Bf16>, pairs<Bf16>(), same(expected_arithmetic<Bf16>));
  test("approximations", 1, approximations, moderate(), wrong_approximations);
  test("memory", 1, memory, numbers(), same(as_they_are));
  test("asynchronous copies", 1, copies, numbers(), same(expected_copies));
  test("release and acquire", 2, between_blocks, numbers(), same(expected_between_blocks));
  test("products of halves", 1, products<Half>, matrices<Half>(), same(expected_products<Half>));
  test("products of bf16", 1, products<Bf16>, matrices<Bf16>(), same(expected_products<Bf16>));
  test("matrices", 1, matrix_loads<false>, numbers(), same(expected_matrix_loads<false>));
  test("transposed matrices", 1, matrix_loads<true>, numbers(), same(expected_matrix_loads<true>));
  test("shuffles", 1, shuffles, numbers(), same(expected_shuffles));
}

inline constexpr int kSharedBytes = 3 * 128 + 4 * kWords;

}  // namespace effv2::cuda::wrappers
