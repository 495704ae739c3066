// The instructions that kernels use beyond C++: the only place with PTX. Kernels stand above it and know
// neither Torch nor the runtime; compiled by a host compiler, they run under csrc/tests/cuda's emulator of
// thread blocks.
//
// Values of 16 bits are Half or Bf16, pairs of them a register (Pair) whose lower half comes first. Memory is
// read and written by load() and store(), shared memory is had from Shared::take(), and nothing else is.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#define EFFV2_DEVICE __device__ __forceinline__
#define EFFV2_ANYWHERE __host__ __device__ __forceinline__
#define EFFV2_UNROLL _Pragma("unroll")
// Of copies, whose addresses would otherwise be kept from one turn of the loop around them to the next.
#define EFFV2_ROLL _Pragma("unroll 1")
#define EFFV2_KERNEL(threads) __global__ void __launch_bounds__(threads)

namespace effv2::cuda {

using Half = __half;
using Bf16 = __nv_bfloat16;
using Pair = std::uint32_t;

template <class T>
constexpr bool kIsHalf = false;
template <>
constexpr bool kIsHalf<Half> = true;

// Where this thread is. Blocks and their threads are counted in one dimension.
EFFV2_DEVICE int thread() { return threadIdx.x; }
EFFV2_DEVICE int threads() { return blockDim.x; }
EFFV2_DEVICE int block() { return blockIdx.x; }
EFFV2_DEVICE int blocks() { return gridDim.x; }

// Barriers, for execution and memory: of the block (PTX ISA, bar.sync), and of the warp (bar.warp.sync).
EFFV2_DEVICE void sync() { __syncthreads(); }
EFFV2_DEVICE void sync_warp() { __syncwarp(); }

// --- Numbers ---------------------------------------------------------------------------------------------

EFFV2_DEVICE float to_float(Half v) { return __half2float(v); }
EFFV2_DEVICE float to_float(Bf16 v) { return __bfloat162float(v); }
// To the nearest, ties to even.
template <class T>
EFFV2_DEVICE T from_float(float v) {
  if constexpr (kIsHalf<T>) {
    return __float2half_rn(v);
  } else {
    return __float2bfloat16_rn(v);
  }
}
// cvt.rn.f16x2.f32 takes the upper half first.
template <class T>
EFFV2_DEVICE Pair pack(float low, float high) {
  Pair r;
  if constexpr (kIsHalf<T>) {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  }
  return r;
}
template <class T>
EFFV2_DEVICE float low(Pair v) {
  if constexpr (kIsHalf<T>) {
    return __low2float(*reinterpret_cast<const __half2*>(&v));
  } else {
    return __uint_as_float(v << 16);
  }
}
template <class T>
EFFV2_DEVICE float high(Pair v) {
  if constexpr (kIsHalf<T>) {
    return __high2float(*reinterpret_cast<const __half2*>(&v));
  } else {
    return __uint_as_float(v & 0xffff0000u);
  }
}

// a * b + c of both halves, each rounded once: fma.rn.f16x2 and fma.rn.bf16x2, from sm_80 on.
template <class T>
EFFV2_DEVICE Pair fma2(Pair a, Pair b, Pair c) {
  Pair r;
  if constexpr (kIsHalf<T>) {
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
  } else {
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
  }
  return r;
}
// mul.bf16x2 needs sm_90: a product there is a multiply-add onto -0, which changes no product.
template <class T>
EFFV2_DEVICE Pair mul2(Pair a, Pair b) {
  if constexpr (kIsHalf<T>) {
    Pair r;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
    return r;
  } else {
    return fma2<T>(a, b, 0x80008000u);
  }
}
// The other operand where one is NaN.
template <class T>
EFFV2_DEVICE Pair min2(Pair a, Pair b) {
  Pair r;
  if constexpr (kIsHalf<T>) {
    asm("min.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  } else {
    asm("min.bf16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  }
  return r;
}
// NaN where one is.
template <class T>
EFFV2_DEVICE Pair max2(Pair a, Pair b) {
  Pair r;
  if constexpr (kIsHalf<T>) {
    asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  } else {
    asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  }
  return r;
}
// tanh within 2^-10.987 of its size for halves, 2^-8 for bf16 (sm_90; in float before), 2^-11 for float.
EFFV2_DEVICE float tanh_fast(float x) {
  float r;
  asm("tanh.approx.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}
EFFV2_DEVICE Pair tanh2(Pair x) {
  Pair r;
  asm("tanh.approx.f16x2 %0, %1;" : "=r"(r) : "r"(x));
  return r;
}
// 2^x within 2 units in the last place (ex2.approx.ftz.f32).
EFFV2_DEVICE float exp2_fast(float x) {
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}

// --- Memory ----------------------------------------------------------------------------------------------

// Of at most 16 bytes, which p is a multiple of.
template <class V>
EFFV2_DEVICE V load(const void* p) {
  return *static_cast<const V*>(p);
}
template <class V>
EFFV2_DEVICE void store(void* p, V v) {
  *static_cast<V*>(p) = v;
}
// Through the read-only cache (ld.global.nc): of what nobody writes during the launch.
template <class V>
EFFV2_DEVICE V load_constant(const void* p) {
  static_assert(sizeof(V) == 2 || sizeof(V) == 4 || sizeof(V) == 8 || sizeof(V) == 16);
  const auto as = [&](auto bits) {
    bits = __ldg(static_cast<const decltype(bits)*>(p));
    return *reinterpret_cast<const V*>(&bits);
  };
  if constexpr (sizeof(V) == 2) return as(static_cast<unsigned short>(0));
  if constexpr (sizeof(V) == 4) return as(0u);
  if constexpr (sizeof(V) == 8) return as(uint2{});
  if constexpr (sizeof(V) == 16) return as(uint4{});
}

// The block's shared memory, given out in pieces of 128 bytes; every thread asks for the same. What is behind
// the pieces so far is given out again by each rest(), which all threads are done with at the next.
class Shared {
 public:
  EFFV2_DEVICE Shared() {
    extern __shared__ __align__(128) char dynamic[];
    next_ = dynamic;
  }
  template <class T>
  EFFV2_DEVICE T* take(int count) {
    T* const taken = reinterpret_cast<T*>(next_);
    next_ += (count * sizeof(T) + 127) / 128 * 128;
    return taken;
  }
  EFFV2_DEVICE Shared rest() const { return *this; }

 private:
  char* next_;
};

EFFV2_DEVICE std::uint32_t shared_address(const void* p) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(p));
}

// cp.async: 16 bytes from global to shared memory, zeros where not `valid`, and then nothing is read. Copies
// are not ordered among each other. Only copy_wait() completes them, and for the thread alone that waits;
// sync() behind it makes them everybody's.
EFFV2_DEVICE void copy_async(void* to, const void* from, bool valid = true) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(valid ? 16 : 0)
               : "memory");
}
EFFV2_DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until at most Pending groups are under way.
template <int Pending>
EFFV2_DEVICE void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

// --- Between blocks of a launch --------------------------------------------------------------------------
// PTX ISA, memory consistency model: release and acquire of scope gpu. What threads of a block wrote before a
// sync() is released by any of them behind it, and what one of them acquires is everybody's behind the next.

// The value before; orders nothing.
EFFV2_DEVICE int fetch_add(int* p, int value) {
  int old;
  asm volatile("atom.add.relaxed.gpu.global.s32 %0, [%1], %2;" : "=r"(old) : "l"(p), "r"(value) : "memory");
  return old;
}
EFFV2_DEVICE std::uint64_t fetch_add(std::uint64_t* p, std::uint64_t value) {
  std::uint64_t old;
  asm volatile("atom.add.relaxed.gpu.global.u64 %0, [%1], %2;" : "=l"(old) : "l"(p), "l"(value) : "memory");
  return old;
}
EFFV2_DEVICE void release_add(std::uint32_t* flag, std::uint32_t value) {
  asm volatile("red.add.release.gpu.global.u32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
}
// Waits until the flag has reached a value, counting around zero, and acquires.
EFFV2_DEVICE void acquire_reached(const std::uint32_t* flag, std::uint32_t value) {
  std::uint32_t found;
  do {
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(found) : "l"(flag) : "memory");
  } while (static_cast<std::int32_t>(found - value) < 0);
}

// --- Instructions of a warp ------------------------------------------------------------------------------
// PTX ISA, matrix fragments; g = lane / 4, t = lane % 4.

// d += a b for a of 16 x 16 and b of 16 x 8 (mma.sync.m16n8k16), sums in float.
//   a[0]: row g, columns 2t and 2t + 1; a[1]: row g + 8; a[2], a[3]: the same 8 columns on
//   b0: rows 2t and 2t + 1 of column g; b1: 8 rows on
//   d[0], d[1]: row g, columns 2t and 2t + 1; d[2], d[3]: row g + 8
template <class T>
EFFV2_DEVICE void mma(float (&d)[4], const Pair (&a)[4], Pair b0, Pair b1) {
  if constexpr (kIsHalf<T>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

// Four matrices of 8 x 8 from shared memory (ldmatrix.x4): lanes 8i to 8i + 7 give the rows of matrix i, of
// 16 bytes each. r[i]: row g, columns 2t and 2t + 1; transposed: rows 2t and 2t + 1 of column g.
template <bool Transposed>
EFFV2_DEVICE void load_matrices(Pair (&r)[4], const void* row) {
  if constexpr (Transposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
  }
}

// The value of lane ^ mask; of a lane.
template <class V>
EFFV2_DEVICE V shuffle_xor(V v, int mask) {
  return __shfl_xor_sync(0xffffffffu, v, mask);
}
template <class V>
EFFV2_DEVICE V shuffle(V v, int lane) {
  return __shfl_sync(0xffffffffu, v, lane);
}

}  // namespace effv2::cuda

#else

#include "emulated/device.h"

#endif
