// What NEON does with vectors of 4 floats, whatever else is computed beside them.
#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

namespace effv2::EFFV2_TARGET {

using Floats = float32x4_t;
inline constexpr int kFloats = 4;

inline Floats load(const float* p) { return vld1q_f32(p); }
inline void store(float* p, Floats v) { vst1q_f32(p, v); }

// keep: a loaded value stays in its register; GCC would rather load it again for every use.
// behind: p, from which nothing is read before v is known.
// load_two: the 32 bytes at p, which then points behind them, by one instruction; compilers would take two.
#ifdef EFFV2_EMULATED
template <class V>
inline void keep(V&) {}
template <class V, class T>
inline T* behind(V, T* p) {
  return p;
}
template <class V, class T>
inline void load_two(const T*& p, V& first, V& second) {
  std::memcpy(&first, p, sizeof first);
  p += sizeof(V) / sizeof(T);
  std::memcpy(&second, p, sizeof second);
  p += sizeof(V) / sizeof(T);
}
#else
template <class V>
inline void keep(V& v) {
  asm("" : "+w"(v));
}
template <class V, class T>
inline T* behind(V v, T* p) {
  asm("" : "+r"(p) : "w"(v));
  return p;
}
template <class V, class T>
inline void load_two(const T*& p, V& first, V& second) {
  struct Bytes {
    V of[2];
  };
  asm("ldp %q0, %q1, [%2], #32"
      : "=w"(first), "=w"(second), "+r"(p)
      : "m"(*reinterpret_cast<const Bytes*>(p)));
}
#endif

// Into the L1 cache.
inline void prefetch(const void* p) { __builtin_prefetch(p); }

inline Floats load_n(const float* p, int count) {
  if (count >= kFloats) return load(p);
  Floats v = vdupq_n_f32(0.0f);
  if (count >= 2) v = vcombine_f32(vld1_f32(p), vdup_n_f32(0.0f));
  if (count == 1) v = vld1q_lane_f32(p, v, 0);
  if (count == 3) v = vld1q_lane_f32(p + 2, v, 2);
  return v;
}
inline void store_n(float* p, Floats v, int count) {
  if (count >= kFloats) return store(p, v);
  if (count >= 2) vst1_f32(p, vget_low_f32(v));
  if (count == 1) vst1q_lane_f32(p, v, 0);
  if (count == 3) vst1q_lane_f32(p + 2, v, 2);
}

inline Floats add(Floats a, Floats b) { return vaddq_f32(a, b); }
inline Floats sub(Floats a, Floats b) { return vsubq_f32(a, b); }
inline Floats mul(Floats a, Floats b) { return vmulq_f32(a, b); }
inline Floats div(Floats a, Floats b) { return vdivq_f32(a, b); }
inline Floats fma(Floats a, Floats b, Floats c) { return vfmaq_f32(c, a, b); }
inline Floats fnma(Floats a, Floats b, Floats c) { return vfmsq_f32(c, a, b); }  // c - a * b
// NaN where b is. Where a alone is NaN, what x86 makes of it and what Arm makes differ.
inline Floats max(Floats a, Floats b) { return vmaxq_f32(a, b); }
inline Floats min(Floats a, Floats b) { return vminq_f32(a, b); }
inline Floats abs(Floats v) { return vabsq_f32(v); }

// p * 2^n for n given as a float whose low mantissa bits hold the integer (n + 1.5 * 2^23).
inline Floats scale_by_power(Floats p, Floats n_shifted) {
  const int32x4_t exponent = vshlq_n_s32(vreinterpretq_s32_f32(n_shifted), 23);
  return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(p), exponent));
}
// v where x >= limit or x is NaN, else 0.
inline Floats zero_below(Floats v, Floats x, Floats limit) {
  return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(v), vcltq_f32(x, limit)));
}

// Horizontal operations: the upper half onto the lower one, and so on. Written out, so that the order of a
// sum is not the compiler's choice.
inline float reduce_add(Floats v) {
  const float32x2_t s = vadd_f32(vget_low_f32(v), vget_high_f32(v));
  return vget_lane_f32(s, 0) + vget_lane_f32(s, 1);
}
inline float reduce_max(Floats v) { return vmaxvq_f32(v); }

}  // namespace effv2::EFFV2_TARGET
