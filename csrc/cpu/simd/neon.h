// NEON, as every 64-bit Arm processor has it: vectors of 4 floats, 32 registers.
#pragma once

#include <arm_neon.h>

#include <cstdint>

#include "cpu/simd/neon_sizes.h"

namespace effv2::EFFV2_TARGET {

using Vec = float32x4_t;

inline Vec zero() { return vdupq_n_f32(0.0f); }
inline Vec set1(float value) { return vdupq_n_f32(value); }
inline Vec broadcast(const float* p) { return vld1q_dup_f32(p); }
inline Vec load(const float* p) { return vld1q_f32(p); }
inline void store(float* p, Vec v) { vst1q_f32(p, v); }

// keep: a loaded value stays in its register; GCC would rather load it again for every use.
// behind: p, from which nothing is read before v is known.
#ifdef EFFV2_EMULATED
inline void keep(Vec&) {}
template <class T>
inline const T* behind(Vec, const T* p) {
  return p;
}
#else
inline void keep(Vec& v) { asm("" : "+w"(v)); }
template <class T>
inline const T* behind(Vec v, const T* p) {
  asm("" : "+r"(p) : "w"(v));
  return p;
}
#endif

// Into the L1 cache.
inline void prefetch(const void* p) { __builtin_prefetch(p); }

inline Vec load_n(const float* p, int count) {
  if (count >= kLanes) return load(p);
  Vec v = zero();
  if (count >= 2) v = vcombine_f32(vld1_f32(p), vdup_n_f32(0.0f));
  if (count == 1) v = vld1q_lane_f32(p, v, 0);
  if (count == 3) v = vld1q_lane_f32(p + 2, v, 2);
  return v;
}
inline void store_n(float* p, Vec v, int count) {
  if (count >= kLanes) return store(p, v);
  if (count >= 2) vst1_f32(p, vget_low_f32(v));
  if (count == 1) vst1q_lane_f32(p, v, 0);
  if (count == 3) vst1q_lane_f32(p + 2, v, 2);
}

inline Vec add(Vec a, Vec b) { return vaddq_f32(a, b); }
inline Vec sub(Vec a, Vec b) { return vsubq_f32(a, b); }
inline Vec mul(Vec a, Vec b) { return vmulq_f32(a, b); }
inline Vec div(Vec a, Vec b) { return vdivq_f32(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return vfmaq_f32(c, a, b); }
inline Vec fnma(Vec a, Vec b, Vec c) { return vfmsq_f32(c, a, b); }  // c - a * b
// NaN where b is. Where a alone is NaN, what x86 makes of it and what Arm makes differ.
inline Vec max(Vec a, Vec b) { return vmaxq_f32(a, b); }
inline Vec min(Vec a, Vec b) { return vminq_f32(a, b); }
inline Vec abs(Vec v) { return vabsq_f32(v); }

// p * 2^n for n given as a float whose low mantissa bits hold the integer (n + 1.5 * 2^23).
inline Vec scale_by_power(Vec p, Vec n_shifted) {
  const int32x4_t exponent = vshlq_n_s32(vreinterpretq_s32_f32(n_shifted), 23);
  return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(p), exponent));
}
// v where x >= limit or x is NaN, else 0.
inline Vec zero_below(Vec v, Vec x, Vec limit) {
  return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(v), vcltq_f32(x, limit)));
}

// Horizontal operations: the upper half onto the lower one, and so on. Written out, so that the order of a
// sum is not the compiler's choice.
inline float reduce_add(Vec v) {
  const float32x2_t s = vadd_f32(vget_low_f32(v), vget_high_f32(v));
  return vget_lane_f32(s, 0) + vget_lane_f32(s, 1);
}
inline float reduce_max(Vec v) { return vmaxvq_f32(v); }

}  // namespace effv2::EFFV2_TARGET
