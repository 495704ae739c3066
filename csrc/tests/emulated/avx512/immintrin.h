// Stands before the compiler's header of this name where AVX-512's code is compiled for a processor with
// AVX2 only: the same intrinsics in portable code (SIMDe), two halves of 256 bits each, so that a fused
// multiply-add rounds once as the real one does.
#pragma once

#include_next <immintrin.h>

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <simde/x86/fma.h>

#include <cstdint>

namespace effv2::emulated {

// SIMDe's masked loads and stores touch the lanes that the mask leaves out (0.8.2).
inline __m512 maskz_loadu(__mmask16 mask, const float* p) {
  alignas(64) float lanes[16];
  for (int i = 0; i < 16; ++i) lanes[i] = mask >> i & 1 ? p[i] : 0.0f;
  return _mm512_loadu_ps(lanes);
}
inline void mask_storeu(float* p, __mmask16 mask, __m512 v) {
  alignas(64) float lanes[16];
  _mm512_storeu_ps(lanes, v);
  for (int i = 0; i < 16; ++i) {
    if (mask >> i & 1) p[i] = lanes[i];
  }
}

// Not in SIMDe (0.8.2): the lower half of each value.
inline __m256i cvtepi32_epi16(__m512i v) {
  alignas(64) std::int32_t values[16];
  alignas(32) std::int16_t halves[16];
  _mm512_store_si512(values, v);
  for (int i = 0; i < 16; ++i) halves[i] = static_cast<std::int16_t>(values[i]);
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(halves));
}

}  // namespace effv2::emulated

#undef _mm512_maskz_loadu_ps
#define _mm512_maskz_loadu_ps(mask, p) effv2::emulated::maskz_loadu(mask, p)
#undef _mm512_mask_storeu_ps
#define _mm512_mask_storeu_ps(p, mask, v) effv2::emulated::mask_storeu(p, mask, v)
#undef _mm512_cvtepi32_epi16
#define _mm512_cvtepi32_epi16(v) effv2::emulated::cvtepi32_epi16(v)
