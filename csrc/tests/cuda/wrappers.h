// One test for every wrapper of cuda/device.h, by its definition: the first thing that a GPU is asked, and
// what the emulator is held to. Each is a kernel of one or two blocks of a warp, what it reads, and what must
// come of it.
#pragma once

#include <cstdint>
#include <string>

#include "wrapped_numbers.h"

namespace effv2::cuda::wrappers {

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
    if (i % 8 == 0) store(box + 4 * i, load<Four>(b.in + 4 * i));
    if (i % 8 == 4) store(box + 4 * i, load_constant<Four>(b.in + 4 * i));
    if (i % 4 == 1)
      store(box + 4 * i, load<Two>(b.in + 4 * i)),
          store(box + 4 * i + 2, load_constant<Two>(b.in + 4 * i + 2));
    for (int j = 0; j < 4; ++j) {
      if (i % 4 == 2) store(box + 4 * i + j, load_constant<std::uint32_t>(b.in + 4 * i + j));
      if (i % 4 != 3) continue;
      const auto* const from = reinterpret_cast<const std::uint16_t*>(b.in + 4 * i + j);
      auto* const to = reinterpret_cast<std::uint16_t*>(box + 4 * i + j);
      store(to, load<std::uint16_t>(from)), store(to + 1, load_constant<std::uint16_t>(from + 1));
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

// Two blocks: the second copies what the first has written behind a flag.
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
  // The flag is ahead of that already, counting around zero.
  acquire_reached(b.flags, 0xfffffff0u);
}
inline Words expected_between_blocks(const Words& in) {
  Words out = in;
  for (int i = 0; i < kWords / 2; ++i) out[kWords / 2 + i] = in[i];
  return out;
}

// Two blocks, each thread of which takes a number from a counter of either size. Those of 64 bits are further
// apart than 32 bits hold.
constexpr std::uint64_t kApart = 0x300000005u;
constexpr int kTakers = 64;
EFFV2_KERNEL(32) counters(Buffers b) {
  const std::uint64_t wide = fetch_add(reinterpret_cast<std::uint64_t*>(b.flags + 2), kApart);
  const int narrow = fetch_add(reinterpret_cast<int*>(b.flags), -3);
  std::uint32_t* const of_wide = b.out + 2 * (wide / kApart);
  store(of_wide, static_cast<std::uint32_t>(wide));
  store(of_wide + 1, static_cast<std::uint32_t>(wide >> 32));
  store(b.out + 2 * kTakers - narrow / 3, narrow);
  for (int i = 3 * kTakers + 32 * block() + thread(); i < kWords; i += kTakers) store(b.out + i, 0);
}
inline Words expected_counters(const Words&) {
  Words out(kWords, 0);
  for (int i = 0; i < kTakers; ++i) {
    out[2 * i] = static_cast<std::uint32_t>(i * kApart);
    out[2 * i + 1] = static_cast<std::uint32_t>(i * kApart >> 32);
    out[2 * kTakers + i] = static_cast<std::uint32_t>(-3 * i);
  }
  return out;
}

// Three layouts of shared memory behind a piece that they keep.
EFFV2_KERNEL(32) layouts(Buffers b) {
  Shared shared;
  std::uint32_t* const kept = shared.take<std::uint32_t>(32);
  store(kept + thread(), load<std::uint32_t>(b.in + thread()));
  sync();
  for (int i = 0; i < kWords / 32; ++i) {
    Shared rest = shared.rest();
    rest.take<char>(1 + 200 * (i % 3));
    std::uint32_t* const box = rest.take<std::uint32_t>(32);
    store(box + thread(),
          load<std::uint32_t>(b.in + 32 * i + thread()) + load<std::uint32_t>(kept + thread()));
    sync();
    store(b.out + 32 * i + 31 - thread(), load<std::uint32_t>(box + 31 - thread()));
    sync();
  }
}
inline Words expected_layouts(const Words& in) {
  Words out(kWords);
  for (int i = 0; i < kWords; ++i) out[i] = in[i] + in[i % 32];
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
  test("approximations at the ends", 1, ends, infinities(), wrong_ends);
  test("memory", 1, memory, numbers(), same(as_they_are));
  test("asynchronous copies", 1, copies, numbers(), same(expected_copies));
  test("layouts of shared memory", 1, layouts, numbers(), same(expected_layouts));
  test("counters", 2, counters, numbers(), same(expected_counters));
  test("release and acquire", 2, between_blocks, numbers(), same(expected_between_blocks));
  test("products of halves", 1, products<Half>, matrices<Half>(), same(expected_products<Half>));
  test("products of bf16", 1, products<Bf16>, matrices<Bf16>(), same(expected_products<Bf16>));
  test("matrices", 1, matrix_loads<false>, numbers(), same(expected_matrix_loads<false>));
  test("transposed matrices", 1, matrix_loads<true>, numbers(), same(expected_matrix_loads<true>));
  test("shuffles", 1, shuffles, numbers(), same(expected_shuffles));
}

inline constexpr int kSharedBytes = 3 * 128 + 4 * kWords;

}  // namespace effv2::cuda::wrappers
