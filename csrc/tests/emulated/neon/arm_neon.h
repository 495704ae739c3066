// Stands for the compiler's header of this name where NEON's code is compiled for an x86 processor: the same
// intrinsics in portable code (SIMDe), with x86's fused multiply-add, so that one rounds once as the real one
// does.
#pragma once

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/arm/neon.h>

namespace effv2::emulated {

// SIMDe rounds these twice (0.8.2).
inline float32x4_t vfmsq(float32x4_t sum, float32x4_t a, float32x4_t b) {
  return vfmaq_f32(sum, vnegq_f32(a), b);
}
#define EFFV2_EMULATED_FMA_LANE(sum, a, b, lane) vfmaq_f32(sum, a, vdupq_laneq_f32(b, lane))

// SIMDe leaves out what is not a number (0.8.2).
inline float vmaxvq(float32x4_t v) {
  const float32x4_t half = vmaxq_f32(v, vextq_f32(v, v, 2));
  return vgetq_lane_f32(vmaxq_f32(half, vextq_f32(half, half, 1)), 0);
}

}  // namespace effv2::emulated

#undef vfmsq_f32
#define vfmsq_f32(sum, a, b) effv2::emulated::vfmsq(sum, a, b)
#undef vfmaq_laneq_f32
#define vfmaq_laneq_f32(sum, a, b, lane) EFFV2_EMULATED_FMA_LANE(sum, a, b, lane)
#undef vmaxvq_f32
#define vmaxvq_f32(v) effv2::emulated::vmaxvq(v)

#include "half.h"
