// What cuda/device.h gives to kernels, for a host compiler: the same by the emulator. Included by that alone.
#pragma once

#include <cmath>
#include <cstring>
#include <utility>

#include "../emulator.h"

// What kernels are made of is watched, what they call here is not.
#define EFFV2_DEVICE inline
#define EFFV2_ANYWHERE inline
#define EFFV2_UNROLL
#define EFFV2_ROLL
#define EFFV2_KERNEL(threads) inline void
#define EFFV2_WRAPPER inline EFFV2_UNWATCHED

namespace effv2::cuda {

struct Half {
  std::uint16_t bits;
};
struct Bf16 {
  std::uint16_t bits;
};
using Pair = std::uint32_t;

template <class T>
constexpr bool kIsHalf = false;
template <>
constexpr bool kIsHalf<Half> = true;

EFFV2_WRAPPER int thread() { return emulator::current->id; }
EFFV2_WRAPPER int threads() { return static_cast<int>(emulator::current->block->threads.size()); }
EFFV2_WRAPPER int block() { return emulator::current->block->index; }
EFFV2_WRAPPER int blocks() { return emulator::blocks(); }

EFFV2_WRAPPER void sync(EFFV2_PLACE) { emulator::sync(EFFV2_HERE); }
EFFV2_WRAPPER void sync_warp(EFFV2_PLACE) {
  emulator::in_warp(emulator::Operation::sync_warp, nullptr, [](void**) {}, EFFV2_HERE);
}

// --- Numbers: numbers.cpp --------------------------------------------------------------------------------

float to_float(Half v);
float to_float(Bf16 v);
// Of more digits than float has: rounded once.
std::uint16_t half_of(double v);
std::uint16_t bf16_of(double v);

template <class T>
EFFV2_WRAPPER T from_double(double v) {
  if constexpr (kIsHalf<T>) {
    return {half_of(v)};
  } else {
    return {bf16_of(v)};
  }
}
template <class T>
EFFV2_WRAPPER T from_float(float v) {
  return from_double<T>(v);
}
template <class T>
EFFV2_WRAPPER Pair pack(float low, float high) {
  emulator::count_operations(1);
  return from_float<T>(low).bits | static_cast<Pair>(from_float<T>(high).bits) << 16;
}
template <class T>
EFFV2_WRAPPER float low(Pair v) {
  return to_float(T{static_cast<std::uint16_t>(v)});
}
template <class T>
EFFV2_WRAPPER float high(Pair v) {
  return to_float(T{static_cast<std::uint16_t>(v >> 16)});
}
template <class T>
EFFV2_WRAPPER Pair fma2(Pair a, Pair b, Pair c) {
  emulator::count_operations(1);
  const auto one = [](double x, double y, double z) { return from_double<T>(std::fma(x, y, z)).bits; };
  return one(low<T>(a), low<T>(b), low<T>(c)) | static_cast<Pair>(one(high<T>(a), high<T>(b), high<T>(c)))
                                                    << 16;
}
template <class T>
EFFV2_WRAPPER Pair mul2(Pair a, Pair b) {
  return fma2<T>(a, b, 0x80008000u);
}
template <class T>
EFFV2_WRAPPER Pair min2(Pair a, Pair b) {
  return pack<T>(std::fmin(low<T>(a), low<T>(b)), std::fmin(high<T>(a), high<T>(b)));
}
template <class T>
EFFV2_WRAPPER Pair max2(Pair a, Pair b) {
  const auto one = [](float x, float y) { return x != x || x > y ? x : y; };
  return pack<T>(one(low<T>(a), low<T>(b)), one(high<T>(a), high<T>(b)));
}
// As far off as the hardware's may be, one way or the other, where Config::approximate asks for it.
float approximated(float exact, float x, float relative);
EFFV2_WRAPPER float tanh_fast(float x) {
  emulator::count_operations(1);
  return approximated(std::tanh(x), x, 0x1p-11f);
}
EFFV2_WRAPPER Pair tanh2(Pair x) {
  emulator::count_operations(2);
  const auto one = [](float v) { return approximated(std::tanh(v), v, 0x1.02p-11f); };  // 2^-10.987
  return pack<Half>(one(low<Half>(x)), one(high<Half>(x)));
}
// What would be less than a normal number becomes 0.
EFFV2_WRAPPER float exp2_fast(float x) {
  emulator::count_operations(1);
  return x < -126 ? 0 : approximated(std::exp2(x), x, 0x1p-22f);
}

// --- Memory ----------------------------------------------------------------------------------------------

template <class V>
EFFV2_WRAPPER V load_as(emulator::Access access, const void* p, emulator::Place at) {
  emulator::count_operations(1);
  emulator::touch(p, sizeof(V), access, at);
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <class V>
EFFV2_WRAPPER V load(const void* p, EFFV2_PLACE) {
  return load_as<V>(emulator::Access::read, p, EFFV2_HERE);
}
template <class V>
EFFV2_WRAPPER void store(void* p, V v, EFFV2_PLACE) {
  emulator::count_operations(1);
  emulator::touch(p, sizeof(V), emulator::Access::write, EFFV2_HERE);
  std::memcpy(p, &v, sizeof v);
}
template <class V>
EFFV2_WRAPPER V load_constant(const void* p, EFFV2_PLACE) {
  return load_as<V>(emulator::Access::constant, p, EFFV2_HERE);
}

class Shared {
 public:
  template <class T>
  EFFV2_UNWATCHED T* take(int count, EFFV2_PLACE) {
    return static_cast<T*>(emulator::take_shared(layout_, next_++, count * sizeof(T), EFFV2_HERE));
  }
  EFFV2_UNWATCHED Shared rest(EFFV2_PLACE) const {
    Shared rest = *this;
    rest.layout_ = emulator::rest_of_shared(layout_, next_, EFFV2_HERE);
    return rest;
  }

 private:
  int layout_ = 0, next_ = 0;
};

EFFV2_WRAPPER void copy_async(void* to, const void* from, bool valid = true, EFFV2_PLACE) {
  emulator::count_operations(1);
  emulator::copy_async(to, from, valid, EFFV2_HERE);
}
EFFV2_WRAPPER void copy_commit() { emulator::copy_commit(); }
template <int Pending>
EFFV2_WRAPPER void copy_wait() {
  emulator::copy_wait(Pending);
}

// --- Between blocks --------------------------------------------------------------------------------------

EFFV2_WRAPPER int fetch_add(int* p, int value, EFFV2_PLACE) {
  return emulator::fetch_add(p, value, EFFV2_HERE);
}
EFFV2_WRAPPER std::uint64_t fetch_add(std::uint64_t* p, std::uint64_t value, EFFV2_PLACE) {
  return emulator::fetch_add(p, value, EFFV2_HERE);
}
EFFV2_WRAPPER void release_add(std::uint32_t* flag, std::uint32_t value, EFFV2_PLACE) {
  emulator::release_add(flag, value, EFFV2_HERE);
}
EFFV2_WRAPPER void acquire_reached(const std::uint32_t* flag, std::uint32_t value, EFFV2_PLACE) {
  emulator::acquire_reached(flag, value, EFFV2_HERE);
}

// --- Instructions of a warp: warp.cpp --------------------------------------------------------------------

struct MmaOperands {
  float* d;
  const Pair* a;
  Pair b0, b1;
};
template <class T>
void mma_of_warp(void** operands);
struct MatrixOperands {
  Pair* r;
  const char* row;
};
template <bool Transposed>
void matrices_of_warp(void** operands);

template <class T>
EFFV2_WRAPPER void mma(float (&d)[4], const Pair (&a)[4], Pair b0, Pair b1, EFFV2_PLACE) {
  emulator::count_operations(1);
  MmaOperands operands{d, a, b0, b1};
  emulator::in_warp(emulator::Operation::mma, &operands, mma_of_warp<T>, EFFV2_HERE);
}
template <bool Transposed>
EFFV2_WRAPPER void load_matrices(Pair (&r)[4], const void* row, EFFV2_PLACE) {
  emulator::count_operations(1);
  emulator::touch_matrix_row(row, EFFV2_HERE);
  MatrixOperands operands{r, static_cast<const char*>(row)};
  emulator::in_warp(emulator::Operation::matrices, &operands, matrices_of_warp<Transposed>, EFFV2_HERE);
}

template <class V>
struct Shuffled {
  V given;
  int from;
  V taken;
};
template <class V>
EFFV2_UNWATCHED inline void shuffle_of_warp(void** operands) {
  for (int lane = 0; lane < 32; ++lane) {
    auto& mine = *static_cast<Shuffled<V>*>(operands[lane]);
    mine.taken = static_cast<const Shuffled<V>*>(operands[mine.from & 31])->given;
  }
}
template <class V>
EFFV2_WRAPPER V shuffle(V v, int lane, EFFV2_PLACE) {
  emulator::count_operations(1);
  Shuffled<V> operands{v, lane, v};
  emulator::in_warp(emulator::Operation::shuffle, &operands, shuffle_of_warp<V>, EFFV2_HERE);
  return operands.taken;
}
template <class V>
EFFV2_WRAPPER V shuffle_xor(V v, int mask, EFFV2_PLACE) {
  return shuffle(v, emulator::current->lane() ^ mask, file, line);
}

}  // namespace effv2::cuda
