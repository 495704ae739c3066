// NEON's arithmetic in half precision where there is none: the intrinsics that simd/neon_half.h asks for, bit
// for bit. SIMDe computes in float, which rounds multiply-adds twice.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace effv2::emulated {

// What float has no digits for marks its last one (rounding to odd), so that rounding the float again gives
// what rounding once would have given: a float has more than two digits more than a half.
inline __m128 to_odd(__m256d v) {
  const __m256i beyond = _mm256_set1_epi64x((std::int64_t{1} << 29) - 1), zero = _mm256_setzero_si256();
  const __m256i bits = _mm256_castpd_si256(v);
  const __m256i exact = _mm256_cmpeq_epi64(_mm256_and_si256(bits, beyond), zero);
  const __m256i mark = _mm256_andnot_si256(exact, _mm256_set1_epi64x(std::int64_t{1} << 29));
  const __m256i odd = _mm256_or_si256(_mm256_andnot_si256(beyond, bits), mark);
  return _mm256_cvtpd_ps(_mm256_castsi256_pd(odd));
}

struct Half {
  std::uint16_t bits;

  Half() = default;
  template <class Number>
  Half(Number value)
      : bits(static_cast<std::uint16_t>(_mm_extract_epi16(
            _mm_cvtps_ph(to_odd(_mm256_set1_pd(static_cast<double>(value))), _MM_FROUND_TO_NEAREST_INT),
            0))) {}
  operator float() const { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(bits))); }
};

struct Halves {
  __m128i bits;
};
struct FourHalves {
  __m128i bits;  // its lower half
};
struct FourTimesHalves {
  Halves val[4];
};

inline __m256 floats(Halves v) { return _mm256_cvtph_ps(v.bits); }
// Sums, products and quotients of halves may be rounded to float before: none is so near to a midpoint of
// halves that it becomes one.
inline Halves halves(__m256 v) { return {_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT)}; }

inline __m256d low(__m256 v) { return _mm256_cvtps_pd(_mm256_castps256_ps128(v)); }
inline __m256d high(__m256 v) { return _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1)); }

// In double precision a multiply-add of halves is exact, or so near to the addend that this is the result.
inline Halves multiply_add(__m256 a, __m256 b, __m256 c) {
  return halves(_mm256_set_m128(to_odd(_mm256_fmadd_pd(high(a), high(b), high(c))),
                                to_odd(_mm256_fmadd_pd(low(a), low(b), low(c)))));
}

// max or min: NaN where either is one, and `zeros` where both are the same.
inline Halves extreme(__m256 found, __m256 zeros, __m256 a, __m256 b) {
  const __m256 numbers = _mm256_blendv_ps(found, zeros, _mm256_cmp_ps(a, b, _CMP_EQ_OQ));
  return halves(_mm256_blendv_ps(numbers, a, _mm256_cmp_ps(a, a, _CMP_UNORD_Q)));
}

// SIMDe's floats and x86's.
inline float32x4_t of_x86(__m128 v) {
  float lanes[4];
  _mm_storeu_ps(lanes, v);
  return vld1q_f32(lanes);
}
inline __m128 to_x86(float32x4_t v) {
  float lanes[4];
  vst1q_f32(lanes, v);
  return _mm_loadu_ps(lanes);
}

// Whether arithmetic or a conversion of this thread has overflowed since the last clear_overflow().
inline void clear_overflow() { _mm_setcsr(_mm_getcsr() & ~static_cast<unsigned>(_MM_EXCEPT_OVERFLOW)); }
inline bool overflowed() { return _mm_getcsr() & _MM_EXCEPT_OVERFLOW; }

}  // namespace effv2::emulated

#define float16_t effv2::emulated::Half
#define float16x4_t effv2::emulated::FourHalves
#define float16x8_t effv2::emulated::Halves
#define float16x8x4_t effv2::emulated::FourTimesHalves
#undef vabsq_f16
#undef vaddq_f16
#undef vcvt_f16_f32
#undef vcvt_f32_f16
#undef vcvt_high_f16_f32
#undef vcvt_high_f32_f16
#undef vdivq_f16
#undef vdupq_n_f16
#undef vfmaq_f16
#undef vfmaq_laneq_f16
#undef vfmsq_f16
#undef vget_low_f16
#undef vld1q_dup_f16
#undef vld1q_f16
#undef vld1q_f16_x4
#undef vmaxq_f16
#undef vmaxvq_f16
#undef vminq_f16
#undef vmulq_f16
#undef vst1q_f16
#undef vsubq_f16

inline float16x8_t vdupq_n_f16(float16_t value) { return {_mm_set1_epi16(static_cast<short>(value.bits))}; }
inline float16x8_t vld1q_dup_f16(const float16_t* p) { return vdupq_n_f16(*p); }
inline float16x8_t vld1q_f16(const float16_t* p) {
  return {_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))};
}
inline float16x8x4_t vld1q_f16_x4(const float16_t* p) {
  return {{vld1q_f16(p), vld1q_f16(p + 8), vld1q_f16(p + 16), vld1q_f16(p + 24)}};
}
inline void vst1q_f16(float16_t* p, float16x8_t v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), v.bits);
}

inline float16x8_t vaddq_f16(float16x8_t a, float16x8_t b) {
  return effv2::emulated::halves(_mm256_add_ps(floats(a), floats(b)));
}
inline float16x8_t vsubq_f16(float16x8_t a, float16x8_t b) {
  return effv2::emulated::halves(_mm256_sub_ps(floats(a), floats(b)));
}
inline float16x8_t vmulq_f16(float16x8_t a, float16x8_t b) {
  return effv2::emulated::halves(_mm256_mul_ps(floats(a), floats(b)));
}
inline float16x8_t vdivq_f16(float16x8_t a, float16x8_t b) {
  return effv2::emulated::halves(_mm256_div_ps(floats(a), floats(b)));
}

inline float16x8_t vfmaq_f16(float16x8_t sum, float16x8_t x, float16x8_t y) {
  return effv2::emulated::multiply_add(floats(x), floats(y), floats(sum));
}
inline float16x8_t vfmsq_f16(float16x8_t sum, float16x8_t a, float16x8_t b) {
  return vfmaq_f16(sum, {_mm_xor_si128(a.bits, _mm_set1_epi16(-0x8000))}, b);
}
inline float16x8_t vfmaq_laneq_f16(float16x8_t sum, float16x8_t a, float16x8_t b, int lane) {
  float16_t lanes[8];
  vst1q_f16(lanes, b);
  return vfmaq_f16(sum, a, vdupq_n_f16(lanes[lane]));
}

inline float16x8_t vabsq_f16(float16x8_t v) { return {_mm_and_si128(v.bits, _mm_set1_epi16(0x7fff))}; }
// +0 is more than -0.
inline float16x8_t vmaxq_f16(float16x8_t x, float16x8_t y) {
  const __m256 a = floats(x), b = floats(y);
  return effv2::emulated::extreme(_mm256_max_ps(a, b), _mm256_and_ps(a, b), a, b);
}
inline float16x8_t vminq_f16(float16x8_t x, float16x8_t y) {
  const __m256 a = floats(x), b = floats(y);
  return effv2::emulated::extreme(_mm256_min_ps(a, b), _mm256_or_ps(a, b), a, b);
}
inline float16_t vmaxvq_f16(float16x8_t v) {
  v = vmaxq_f16(v, {_mm_alignr_epi8(v.bits, v.bits, 8)});
  v = vmaxq_f16(v, {_mm_alignr_epi8(v.bits, v.bits, 4)});
  v = vmaxq_f16(v, {_mm_alignr_epi8(v.bits, v.bits, 2)});
  float16_t lanes[8];
  vst1q_f16(lanes, v);
  return lanes[0];
}

inline float16x4_t vget_low_f16(float16x8_t v) { return {v.bits}; }
inline float32x4_t vcvt_f32_f16(float16x4_t v) { return effv2::emulated::of_x86(_mm_cvtph_ps(v.bits)); }
inline float32x4_t vcvt_high_f32_f16(float16x8_t v) { return vcvt_f32_f16({_mm_srli_si128(v.bits, 8)}); }
inline float16x4_t vcvt_f16_f32(float32x4_t v) {
  return {_mm_cvtps_ph(effv2::emulated::to_x86(v), _MM_FROUND_TO_NEAREST_INT)};
}
inline float16x8_t vcvt_high_f16_f32(float16x4_t below, float32x4_t v) {
  return {_mm_unpacklo_epi64(below.bits, vcvt_f16_f32(v).bits)};
}
