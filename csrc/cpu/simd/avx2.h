// AVX2 + FMA: vectors of 8 floats, 16 registers.
#pragma once

#include "cpu/simd/avx2_sizes.h"
#include "cpu/simd/x86.h"

namespace effv2::EFFV2_TARGET {

using Vec = __m256;

inline Vec zero() { return _mm256_setzero_ps(); }
inline Vec set1(float value) { return _mm256_set1_ps(value); }
inline Vec broadcast(const float* p) { return _mm256_broadcast_ss(p); }
inline Vec load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, Vec v) { _mm256_storeu_ps(p, v); }

// Keeps a loaded value in its register: GCC would rather load it again for every use.
inline void keep(Vec& v) { asm("" : "+x"(v)); }

inline __m256i lane_mask(int count) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), lane);
}
inline Vec load_n(const float* p, int count) { return _mm256_maskload_ps(p, lane_mask(count)); }
inline void store_n(float* p, Vec v, int count) { _mm256_maskstore_ps(p, lane_mask(count), v); }

inline Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
inline Vec sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
inline Vec div(Vec a, Vec b) { return _mm256_div_ps(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
inline Vec fnma(Vec a, Vec b, Vec c) { return _mm256_fnmadd_ps(a, b, c); }  // c - a * b
// NaN where b is. Where a alone is NaN, what x86 makes of it and what Arm makes differ.
inline Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
inline Vec min(Vec a, Vec b) { return _mm256_min_ps(a, b); }
inline Vec abs(Vec v) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), v); }

// p * 2^n for n given as a float whose low mantissa bits hold the integer (n + 1.5 * 2^23).
inline Vec scale_by_power(Vec p, Vec n_shifted) {
  const __m256i exponent = _mm256_slli_epi32(_mm256_castps_si256(n_shifted), 23);
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), exponent));
}
// v where x >= limit or x is NaN, else 0.
inline Vec zero_below(Vec v, Vec x, Vec limit) {
  return _mm256_andnot_ps(_mm256_cmp_ps(x, limit, _CMP_LT_OQ), v);
}

}  // namespace effv2::EFFV2_TARGET
