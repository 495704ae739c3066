// bf16 storage on AVX-512, without its instructions for bf16.
#pragma once

#include "cpu/simd/avx512.h"
#include "cpu/targets/avx512_tile.h"

namespace effv2::EFFV2_TARGET {

inline Vec widen(const std::uint16_t* p) {
  const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

inline void narrow(std::uint16_t* p, Vec v) {
  const __m512i bits = _mm512_castps_si512(v), high = _mm512_srli_epi32(bits, 16);
  const __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
  const __m512i rounded =
      _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
  const __m512i quiet = _mm512_or_si512(high, _mm512_set1_epi32(0x40));
  const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  const __m512i halves = _mm512_mask_mov_epi32(rounded, nan, quiet);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(halves));
}

inline void widen_pair(const std::uint16_t* p, Vec& first, Vec& second) {
  const __m512i halves = _mm512_loadu_si512(p), zeros = _mm512_setzero_si512();
  first = _mm512_castsi512_ps(_mm512_unpacklo_epi16(zeros, halves));
  second = _mm512_castsi512_ps(_mm512_unpackhi_epi16(zeros, halves));
}

}  // namespace effv2::EFFV2_TARGET

#include "cpu/formats/bf16.h"
