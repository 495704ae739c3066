// AVX-512 (F, BW, DQ, VL): vectors of 16 floats, 32 registers.
#pragma once

#include "cpu/simd/avx512_sizes.h"
#include "cpu/simd/x86.h"

namespace effv2::EFFV2_TARGET {

using Vec = __m512;

inline Vec zero() { return _mm512_setzero_ps(); }
inline Vec set1(float value) { return _mm512_set1_ps(value); }
inline Vec broadcast(const float* p) { return _mm512_set1_ps(*p); }
inline Vec load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, Vec v) { _mm512_storeu_ps(p, v); }

// Keeps a loaded value in its register: GCC would rather load it again for every use.
#ifdef EFFV2_EMULATED
inline void keep(Vec&) {}
#else
inline void keep(Vec& v) { asm("" : "+v"(v)); }
#endif

inline __mmask16 lane_mask(int count) {
  return count >= 16 ? static_cast<__mmask16>(0xffff) : static_cast<__mmask16>((1u << count) - 1u);
}
inline Vec load_n(const float* p, int count) { return _mm512_maskz_loadu_ps(lane_mask(count), p); }
inline void store_n(float* p, Vec v, int count) { _mm512_mask_storeu_ps(p, lane_mask(count), v); }

inline Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
inline Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
inline Vec div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
inline Vec fnma(Vec a, Vec b, Vec c) { return _mm512_fnmadd_ps(a, b, c); }  // c - a * b
// NaN where b is. Where a alone is NaN, what x86 makes of it and what Arm makes differ.
inline Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
inline Vec min(Vec a, Vec b) { return _mm512_min_ps(a, b); }
inline Vec abs(Vec v) { return _mm512_abs_ps(v); }

// p * 2^n for n given as a float whose low mantissa bits hold the integer (n + 1.5 * 2^23).
inline Vec scale_by_power(Vec p, Vec n_shifted) {
  const __m512i exponent = _mm512_slli_epi32(_mm512_castps_si512(n_shifted), 23);
  return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), exponent));
}
// v where x >= limit or x is NaN, else 0.
inline Vec zero_below(Vec v, Vec x, Vec limit) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, limit, _CMP_NLT_UQ), v);
}

// Tables of 32 floats in two registers.
#define EFFV2_TABLE_LOOKUP
struct Table {
  Vec low, high;
};
inline Table load_table(const float* p) { return {load(p), load(p + kLanes)}; }
// index: integers 0 ... 31 in the low bits of the mantissa, whatever lies above them.
inline Vec lookup(Table table, Vec index) {
  return _mm512_permutex2var_ps(table.low, _mm512_castps_si512(index), table.high);
}
// The smaller one of |v| and limit >= 0; limit where v is NaN.
inline Vec min_abs(Vec v, Vec limit) { return _mm512_range_ps(v, limit, 0b1010); }

inline float reduce_add(Vec v) {
  return reduce_add(_mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1)));
}
inline float reduce_max(Vec v) {
  return reduce_max(_mm256_max_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1)));
}

}  // namespace effv2::EFFV2_TARGET
