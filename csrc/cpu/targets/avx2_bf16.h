// bf16 storage on AVX2.
#pragma once

#include "cpu/simd/avx2.h"
#include "cpu/targets/avx2_tile.h"

namespace effv2::EFFV2_TARGET {

inline Vec widen(const std::uint16_t* p) {
  const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}

inline void narrow(std::uint16_t* p, Vec v) {
  const __m256i bits = _mm256_castps_si256(v), high = _mm256_srli_epi32(bits, 16);
  const __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
  const __m256i rounded =
      _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
  const __m256i quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  const __m256i halves = _mm256_blendv_epi8(rounded, quiet, nan);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(halves, halves), 0b1000);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
}

inline void widen_pair(const std::uint16_t* p, Vec& first, Vec& second) {
  const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
                zeros = _mm256_setzero_si256();
  first = _mm256_castsi256_ps(_mm256_unpacklo_epi16(zeros, halves));
  second = _mm256_castsi256_ps(_mm256_unpackhi_epi16(zeros, halves));
}

}  // namespace effv2::EFFV2_TARGET

#include "cpu/formats/bf16.h"
