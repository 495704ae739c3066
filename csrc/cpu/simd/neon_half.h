// NEON with arithmetic in half precision (FEAT_FP16, of Arm from v8.2 on): vectors of 8 halves, and of as
// many floats where halves would not do.
#pragma once

#include "cpu/simd/neon_floats.h"
#include "cpu/simd/neon_half_sizes.h"

namespace effv2::EFFV2_TARGET {

using Half = float16_t;
using Vec = float16x8_t;

inline Vec zero() { return vdupq_n_f16(0.0f); }
inline Vec set1(float value) { return vdupq_n_f16(static_cast<Half>(value)); }
inline Vec broadcast(const Half* p) { return vld1q_dup_f16(p); }
inline Vec load(const Half* p) { return vld1q_f16(p); }
inline void store(Half* p, Vec v) { vst1q_f16(p, v); }

inline Vec load_n(const Half* p, int count) {
  if (count >= kLanes) return load(p);
  alignas(16) Half all[kLanes] = {};
  for (int i = 0; i < count; ++i) all[i] = p[i];
  return load(all);
}
inline void store_n(Half* p, Vec v, int count) {
  if (count >= kLanes) return store(p, v);
  alignas(16) Half all[kLanes];
  store(all, v);
  for (int i = 0; i < count; ++i) p[i] = all[i];
}

inline Vec add(Vec a, Vec b) { return vaddq_f16(a, b); }
inline Vec sub(Vec a, Vec b) { return vsubq_f16(a, b); }
inline Vec mul(Vec a, Vec b) { return vmulq_f16(a, b); }
inline Vec div(Vec a, Vec b) { return vdivq_f16(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return vfmaq_f16(c, a, b); }
inline Vec fnma(Vec a, Vec b, Vec c) { return vfmsq_f16(c, a, b); }  // c - a * b
inline Vec max(Vec a, Vec b) { return vmaxq_f16(a, b); }
inline Vec min(Vec a, Vec b) { return vminq_f16(a, b); }
inline Vec abs(Vec v) { return vabsq_f16(v); }
inline float reduce_max(Vec v) { return vmaxvq_f16(v); }

// As many floats as a vector has lanes.
struct Wide {
  Floats low, high;
};
inline Wide wide(float value) { return {vdupq_n_f32(value), vdupq_n_f32(value)}; }
inline Wide widened(Vec v) { return {vcvt_f32_f16(vget_low_f16(v)), vcvt_high_f32_f16(v)}; }
// To the nearest, ties to even.
inline Vec narrowed(Wide v) { return vcvt_high_f16_f32(vcvt_f16_f32(v.low), v.high); }

inline Wide add(Wide a, Wide b) { return {add(a.low, b.low), add(a.high, b.high)}; }
inline Wide sub(Wide a, Wide b) { return {sub(a.low, b.low), sub(a.high, b.high)}; }
inline Wide mul(Wide a, Wide b) { return {mul(a.low, b.low), mul(a.high, b.high)}; }
inline Wide fma(Wide a, Wide b, Wide c) { return {fma(a.low, b.low, c.low), fma(a.high, b.high, c.high)}; }
inline Wide max(Wide a, Wide b) { return {max(a.low, b.low), max(a.high, b.high)}; }
inline Wide scale_by_power(Wide p, Wide n_shifted) {
  return {scale_by_power(p.low, n_shifted.low), scale_by_power(p.high, n_shifted.high)};
}
inline Wide zero_below(Wide v, Wide x, Wide limit) {
  return {zero_below(v.low, x.low, limit.low), zero_below(v.high, x.high, limit.high)};
}
inline float reduce_add(Wide v) { return reduce_add(add(v.low, v.high)); }
inline float reduce_add(Vec v) { return reduce_add(widened(v)); }

// Whether arithmetic or a conversion of this thread has overflowed since the last clear_overflow().
#ifdef EFFV2_EMULATED
using emulated::clear_overflow;
using emulated::overflowed;
#else
inline constexpr std::uint64_t kOverflowed = 1u << 2;  // of FPSR
inline void clear_overflow() {
  std::uint64_t status;
  asm volatile("mrs %0, fpsr" : "=r"(status));
  status &= ~kOverflowed;
  asm volatile("msr fpsr, %0" ::"r"(status));
}
inline bool overflowed() {
  std::uint64_t status;
  asm volatile("mrs %0, fpsr" : "=r"(status));
  return status & kOverflowed;
}
#endif

}  // namespace effv2::EFFV2_TARGET
